"""What a job of `student chain` may say: students of which some teach others, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from jobs.files.student_job import StudentJob, TrainingJob
from storage.encodings import AnyEncoding, DenseEncoding, FeatureEncoding
from storage.options import JobPath, Name, Options
from student_train.options.by_dataset import teachers_named
from student_train.options.sections import StudentOptions


class Generation(NamedTuple):
    """Students that can be trained at one time.

    Attributes:
        students: in the job's order; each learns from students of generations before, or from none.
        teachers: of those, whom nobody has learned from before; they are asked about all rows first.
    """

    students: tuple[StudentOptions, ...]
    teachers: tuple[str, ...]


class TeachingOptions(Options):
    """How students are asked once they are teachers, as a `[[teacher]]` of a cache job says it.

    Attributes:
        encoding: how their soft targets are stored.
        features: name → layer, pooling and precision of an intermediate tensor to store beside.
        autocast: precision of the forward pass.
        batch_size: rows of one forward pass.
    """

    encoding: AnyEncoding = DenseEncoding()
    features: dict[Name, FeatureEncoding] = Field(default_factory=dict)
    autocast: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: Annotated[int, Field(ge=1)] = 256


class ChainJob(TrainingJob):
    """A whole `chain.*.toml`: a student job whose students may be named as teachers.

    Attributes:
        job: the cache job that names the data, teachers that are no students, views and the build's cluster.
        teaching: how students are asked once they are teachers.
    """

    job: JobPath
    teaching: TeachingOptions = TeachingOptions()

    @model_validator(mode="after")
    def _generations(self) -> Self:
        if len(generations(self.student)) == 1:
            raise ValueError("no student learns from another: name one as a `teacher`; or it is a job of student train")
        return self

    def asked(self, name: str) -> dict[str, Any]:
        """Return the `[[teacher]]` that a student is to the cache job."""
        (student,) = (student for student in self.student if student.name == name)
        own = {"architecture": student.architecture} if ":" in (student.architecture or "") else {}
        teaching = {key: getattr(self.teaching, key) for key in TeachingOptions.model_fields}
        return {"name": name, "student": str(self.runs / name)} | own | teaching

    def of(self, cache: str, students: Sequence[StudentOptions]) -> StudentJob:
        """Return the student job of some of its students, whose teachers are in a cache."""
        said = {key: getattr(self, key) for key in TrainingJob.model_fields}
        return StudentJob.model_validate(said | {"cache": cache, "defaults": {}, "student": list(students)})


def generations(students: Sequence[StudentOptions]) -> list[Generation]:
    """Return students by generation: as early as those that they learn from allow.

    Raises:
        ValueError: some learn from each other.
    """
    names = {student.name for student in students}
    taught = {student.name: [name for name in teachers_of(student) if name in names] for student in students}
    found: list[Generation] = []
    trained, asked, left = set[str](), set[str](), list(students)
    while left:
        ready = [student for student in left if trained.issuperset(taught[student.name])]
        if not ready:
            circle = ", ".join(f"{student.name} from {' and '.join(taught[student.name])}" for student in left)
            raise ValueError(f"students that wait for each other are never trained: {circle}")
        new = dict.fromkeys(name for student in ready for name in taught[student.name] if name not in asked)
        found.append(Generation(tuple(ready), tuple(new)))
        trained |= {student.name for student in ready}
        asked |= new.keys()
        left = [student for student in left if student.name not in trained]
    return found


def teachers_of(student: StudentOptions) -> list[str]:
    """Return the teachers that a student learns from, each once, in whichever dataset."""
    named = [name for term in student.objective for name in term.teacher_names]
    return list(dict.fromkeys(own for name in named for own in owns(name)))


def told_teachers(student: StudentOptions) -> str:
    """Return whom a student learns from, in words."""
    return ", ".join(teachers_of(student)) or "labels alone"


def owns(name: str) -> tuple[str, ...]:
    """Return the teachers that a name in a term means: one, or one for each dataset."""
    return tuple(teachers_named(name).values()) or (name,)
