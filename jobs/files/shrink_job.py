"""What a job of `student bench` may say: a teacher, the ways to make a student of it, and how these are trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from storage.options import Factory, JobPath, Name
from student_train.options.sections import DataOptions, StudentOptions

Way = Literal[
    "prune-magnitude",
    "prune-taylor",
    "prune-activation",
    "prune-first",
    "prune-random",
    "lowrank-plain",
    "lowrank-activations",
]
FACTORY: TypeAdapter[str] = TypeAdapter(Factory)
Share = Annotated[float, Field(gt=0, lt=1)]


class ShrinkJob(DataOptions):
    """A whole `shrink.*.toml`; the fields of DataOptions stand at its top.

    Attributes:
        job: the cache job that names the teacher; its cache must be built.
        teacher: its name there.
        runs: folder of all that is made and trained.
        ways: to make a student.
        flops: sizes that each way makes one of, as shares of the teacher's.
        int8: schemes of int8, after training and while it is trained; of the teacher's size.
        rows: of the cache, that ways look at.
        seeds: of what chance makes, and of the order of rows in which each is trained.
        training: keys of a `[[student]]` that all have.
        distilled: the objective that is compared with labels alone.
    """

    job: JobPath
    teacher: Name
    runs: JobPath
    ways: Annotated[tuple[Way, ...], Field(strict=False)]
    flops: Annotated[tuple[Share, ...], Field(strict=False)]
    int8: Annotated[tuple[Literal["channel", "tensor"], ...], Field(strict=False)] = ()
    rows: Annotated[int, Field(ge=1)] = 256
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = (0,)
    training: dict[str, Any] = Field(default={})
    distilled: list[dict[str, Any]]

    @model_validator(mode="after")
    def _compares(self) -> Self:
        if not (self.ways and self.flops) and not self.int8:
            raise ValueError("nothing is compared: give `ways` and `flops`, or `int8`")
        shares = [f"{share:g}" for share in self.flops]  # as names have them
        asked = {"ways": self.ways, "flops": shares, "int8": self.int8, "seeds": self.seeds}
        if twice := sorted(name for name, values in asked.items() if len(set(values)) < len(values)):
            raise ValueError(f"{', '.join(twice)}: the same twice, which would be one student")
        if own := sorted({"name", "start", "objective", "seed", "quantize"} & self.training.keys()):
            raise ValueError(f"the bench itself gives each student its {', '.join(own)}")
        try:
            self.student("made", str(self.runs), "distilled", 0, None)
        except ValidationError as error:
            told = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
            raise ValueError(f"no student can be trained so: {'; '.join(told)}") from None
        return self

    @field_validator("training")
    @classmethod
    def _beside_the_job(cls, training: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Return keys whose file of a factory is found from the job's folder."""
        architecture = training.get("architecture")
        if not isinstance(architecture, str) or ":" not in architecture:
            return training
        return training | {"architecture": FACTORY.validate_python(architecture, context=info.context)}

    def student(self, made: str, start: str, objective: str, seed: int, quantize: str | None) -> StudentOptions:
        """Return a student to train.

        Args:
            made: name of what it starts from.
            start: its folder.
            objective: "labels", or "distilled".
            seed: of it.
            quantize: a scheme of int8 in which it is trained, or None.
        """
        said = self.training | {
            "name": f"{made}-{objective}-s{seed}",
            "start": start,
            "objective": self.distilled if objective == "distilled" else [{"loss": "labels"}],
            "seed": seed,
        }
        if quantize is not None:
            said["quantize"] = {"kind": "int8", "per": quantize}
        return StudentOptions.model_validate(said)
