"""The story of `student bench`: students are made, measured, trained in passes that they share, and measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.files.shrink_job import ShrinkJob
from jobs.shrink.measure import ROWS, accuracy, milliseconds
from storage.cache import Cache
from storage.errors import BadRequest
from storage.tasks import task_of
from student_train.options.sections import DataOptions, datasets_of, listed

if TYPE_CHECKING:
    from student_train.running.events import Report
    from student_train.running.train import Summary
    from student_train.students import Student
    from teacher_cache.making.make import Made

OBJECTIVES = ("labels", "distilled")
WHOLE = "teacher"  # as a student


class Maker(NamedTuple):
    """One student to make.

    Attributes:
        name: of it.
        way, options: as of MakeRequest.
        trained: the scheme of int8 in which it is trained, from the teacher as it is; None: as it was made.
        drawn: whether chance makes it, another one for each seed.
    """

    name: str
    way: str
    options: Any
    trained: str | None = None
    drawn: bool = False

    def of(self, seed: int) -> Maker:
        """Return what makes the student of a seed."""
        if not self.drawn:
            return self
        return self._replace(name=f"{self.name}-s{seed}", options=self.options._replace(seed=seed))

    def starts(self, seed: int) -> str:
        """Return the name of what the student of a seed starts from."""
        return WHOLE if self.trained is not None else self.of(seed).name


@dataclass(frozen=True)
class Compared:
    """A student that was made, and what became of it.

    Attributes:
        name: of what was made.
        flops, parameters, bytes: of it, as it is written in the end.
        ms_1, ms_64: median time for one row and for 64, here, in milliseconds.
        before: accuracy as it was made, the mean over those that chance made.
        after: mean accuracy over seeds, by objective.
        spread: standard deviation over seeds; None of one.
    """

    name: str
    flops: int
    parameters: int
    bytes: int
    ms_1: float
    ms_64: float
    before: float
    after: dict[str, float]
    spread: dict[str, float | None]


@dataclass(frozen=True)
class Bench:
    """The teacher, what was made of it, and how the training ended."""

    teacher: Compared
    compared: tuple[Compared, ...]
    summary: Summary


def run_bench(
    job: ShrinkJob, build: Any, device: Any, note: Callable[[str], None], report: Report, stop: Callable[[], bool]
) -> Bench:
    """Make, train and measure all students of a job; what is there already is not made or trained again.

    Args:
        job: what is asked for.
        build: the request of the cache job that names the teacher.
        device: of the training.
        note: told what was made.
        report, stop: as of `train_students`.

    Raises:
        BadRequest, StaleCache, NotInCache: as of `student make` and `student train`; or there are no labels.
        Interrupted: `stop` said so; the same again goes on.
    """
    from student_train.running.train import Summary

    cache, held = Cache.open(build.cache), listed(job.validation)
    if vectors := sorted(name for name in datasets_of(job.train) if not task_of(cache.dataset(name)).has_classes):
        raise BadRequest(
            "students are compared by their accuracy, and vectors have none",
            found=f"dataset {', '.join(vectors)}",
            do="student make, and student eval of each",
        )
    makers, code = list(_makers(job)), job.training.get("architecture")
    folders = _make_all(job, build, makers, note)
    teacher = _load(folders[WHOLE], code)
    own = _compared(WHOLE, teacher, accuracy(teacher, cache, held), {}, {})  # before hours of training
    passes = [_trained(job, makers, folders, seed, cache, device, report, stop) for seed in job.seeds]
    summary = Summary(
        tuple(record for each in passes for record in each.records),
        {name: error for each in passes for name, error in each.errors.items()},
    )
    after = {record.student: record.accuracy for record in summary.records}
    compared = []
    for maker in makers:
        each = [_load(folders[name], code) for name in dict.fromkeys(maker.of(seed).name for seed in job.seeds)]
        found = of_seeds(after, maker.name, job.seeds)
        for objective, values in found.items():
            if len(values) < len(job.seeds):
                note(f"{maker.name}, {objective}: {len(values)} of {len(job.seeds)} seeds came to an end")
        means = {objective: mean(values) for objective, values in found.items() if values}
        spread = {objective: stdev(values) if values[1:] else None for objective, values in found.items()}
        before = mean(accuracy(student, cache, held) for student in each)
        compared.append(_compared(maker.name, each[0], before, means, spread))
    return Bench(own, tuple(compared), summary)


def _trained(
    job: ShrinkJob,
    makers: Sequence[Maker],
    folders: Mapping[str, Path],
    seed: int,
    cache: Cache,
    device: Any,
    report: Report,
    stop: Callable[[], bool],
) -> Summary:
    """Train the students of a seed in one pass. They start from what was made, so that chance is the order of rows."""
    from student_train.preparing.request import Request
    from student_train.running.train import train_students

    students = tuple(
        job.student(maker.name, str(folders[maker.starts(seed)]), objective, seed, maker.trained)
        for maker in makers
        for objective in OBJECTIVES
    )
    data = DataOptions(**job.model_dump(include=set(DataOptions.model_fields)))
    shuffled = data.model_copy(update={"order_seed": data.order_seed + seed})
    request = Request(cache, job.runs / "students", shuffled, students, device)
    return train_students(request, report=report, stop=stop)


def _make_all(job: ShrinkJob, build: Any, makers: Sequence[Maker], note: Callable[[str], None]) -> dict[str, Path]:
    """Make what is not there yet, the teacher as a student too; return the folder of each by its name."""
    folders = {}
    for maker in (*(each.of(seed) for each in makers for seed in job.seeds), _whole()):
        if maker.name not in folders:
            made = _make(job, build, maker)
            folders[maker.name] = made.folder
            note(f"{maker.name}: {made.size.flops / made.whole.flops:.3f} of the FLOPs" + "; ".join(("", *made.told)))
    return folders


def of_seeds(after: Mapping[str, float | None], name: str, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Return the accuracies of what was made under a name, by objective, of those seeds that came to an end.

    >>> of_seeds({"half-labels-s0": 0.0, "half-labels-s1": 0.5}, "half", (0, 1))
    {'labels': [0.0, 0.5], 'distilled': []}
    """
    return {
        objective: [value for s in seeds if (value := after.get(f"{name}-{objective}-s{s}")) is not None]
        for objective in OBJECTIVES
    }


def _whole() -> Maker:
    from teacher_cache.making.ways.copying import CopyOptions

    return Maker(WHOLE, "copy", CopyOptions(None, None, 1.0, "first"))


def _makers(job: ShrinkJob) -> Any:
    from teacher_cache.making.sizes import Target
    from teacher_cache.making.ways.lowrank import LowRankOptions
    from teacher_cache.making.ways.prune import PruneOptions
    from teacher_cache.making.ways.quantize import QuantizeOptions

    for share in job.flops:
        target = Target("flops", share)
        for way in job.ways:
            kind, _, by = way.partition("-")
            options: Any = LowRankOptions(target, None, by) if kind == "lowrank" else PruneOptions(target, by, 0)  # type: ignore[arg-type]
            yield Maker(f"{way}-{share:g}", kind, options, drawn=by == "random")
    for per in job.int8:
        yield Maker(f"int8-{per}", "quantize", QuantizeOptions(per), per)


def _make(job: ShrinkJob, build: Any, maker: Maker) -> Made:
    from teacher_cache.making.make import MakeRequest, make

    out = job.runs / "made" / maker.name
    dataset = datasets_of(job.train)[0]
    return make(MakeRequest(build, job.teacher, maker.way, maker.options, out, dataset=dataset, rows=job.rows))


def _load(folder: Any, architecture: str | None) -> Student:
    from student_train.students import load_student

    return load_student(folder, architecture=architecture)


def _compared(
    name: str, student: Student, before: float, after: dict[str, float], spread: dict[str, float | None]
) -> Compared:
    from student_train.students import size_of_student

    size = size_of_student(student)
    times = milliseconds(student, 1), milliseconds(student, ROWS)
    return Compared(name, size.flops, size.parameters, size.bytes, *times, before, after, spread)
