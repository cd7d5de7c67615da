"""The story of a build: plan what is missing, write the promises, run the shards, say what happened.

`plan_build` only reads; `run_build` does. The store is the truth: resuming is listing commits and planning the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import polars as pl

from storage.cache import Cache
from storage.datasets import Source, Unreadable
from storage.errors import (
    BadRequest,
    CorruptObject,
    MissingSource,
    NotInCache,
    RowsMissing,
    StaleCache,
    StillroomError,
    TryAgain,
)
from storage.ledger import Ledger
from storage.rows import RowPlan, Segment, ShardRows, create_segment
from storage.shards import ShardKey
from storage.spec import DatasetSpec, TeacherSpec, check_spec, write_spec
from storage.views import PLAIN
from teacher_cache.plan import default_rows_per_shard, grow, missing
from teacher_cache.runners import Runner, WorkerDied
from teacher_cache.shard_task import Done, Task
from teacher_cache.teachers import TeacherOptions

PROBED_SAMPLES = 100  # read to learn the shape of an input; one readable sample among them is enough
SET_ASIDE_LIMIT = 5  # shards that fail for no known reason before the build stops


@dataclass(frozen=True)
class BuildRequest:
    """What a build is asked for.

    Attributes:
        cache: address of the cache.
        job: the job's file, for messages.
        sources, teachers: sections of the job.
        part: (i, n), this process does number i of n.
        device: of teachers: auto, cpu, cuda.
        threads: of torch, per worker.
    """

    cache: str
    job: str
    sources: tuple[Source, ...]
    teachers: tuple[TeacherOptions, ...]
    part: tuple[int, int] = (0, 1)
    device: str = "auto"
    threads: int = 1


@dataclass(frozen=True)
class PlannedDataset:
    """A dataset as this build will leave it.

    Attributes:
        rows: the plan, with `segment` at its end if the dataset is new or has grown.
        mended: shards with quarantined samples whose files have changed since; they are built again.
    """

    source: Source
    spec: DatasetSpec
    rows: RowPlan
    segment: Segment | None
    mended: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """The ingest of a dataset (no teacher), or one teacher over it."""

    dataset: PlannedDataset
    teacher: TeacherOptions | None
    spec: TeacherSpec | None
    shards: tuple[ShardRows, ...]
    todo: tuple[ShardRows, ...]

    @property
    def name(self) -> str:
        return f"{self.dataset.spec.name}/{'ingest' if self.teacher is None else self.teacher.name}"


@dataclass(frozen=True)
class BuildPlan:
    """Everything that a build will do; nothing is done yet."""

    request: BuildRequest
    stages: tuple[Stage, ...]

    @property
    def num_missing(self) -> int:
        """Shards to compute."""
        return sum(len(stage.todo) for stage in self.stages)


@dataclass
class BuildReport:
    """What a build did.

    Attributes:
        built: shards committed by this command, in all its stages.
        present: shards that were there before.
        lost: shards that another builder committed first.
        refused, failed: message per shard that could not be built.
        quarantined: dataset → `row`, `sample_id`, `error`.
    """

    built: int = 0
    present: int = 0
    lost: int = 0
    rows: int = 0
    bytes: int = 0
    refused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    quarantined: dict[str, pl.DataFrame] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 complete, 1 a failure of ours, 3 rows are missing."""
        if self.failed:
            return 1
        return RowsMissing.exit_code if self.refused or any(map(len, self.quarantined.values())) else 0


class Progress(Protocol):
    """How a build is watched."""

    def stage(self, name: str, rows: int, rows_done: int) -> None:
        """A stage begins; `rows_done` of its rows were there before."""

    def done(self, done: Done) -> None:
        """A shard is committed."""

    def note(self, text: str) -> None:
        """Something that the user should see at once."""


def plan_build(request: BuildRequest) -> BuildPlan:
    """Return what a build would do. Reads only; loads no teacher.

    Raises:
        StaleCache: the cache was built from another dataset, teacher, preprocessing or precision.
        MissingSource: a dataset or its weights are not there.
    """
    try:
        cache = Cache.open(request.cache)
    except NotInCache:
        cache = None
    stages = []
    for source in request.sources:
        dataset = _plan_dataset(cache, source, request.job)
        shards = tuple(dataset.rows.shards())
        stages.append(_plan_stage(cache, dataset, None, None, shards, request.part))
        for teacher in request.teachers:
            if teacher.datasets is None or source.name in teacher.datasets:
                spec = teacher.promise(_num_classes(teacher, dataset.spec))
                if cache is not None and teacher.name in cache.teacher_names(source.name):
                    check_spec(cache.objects, f"{source.name}/{teacher.name}/teacher.json", spec, request.job)
                stages.append(_plan_stage(cache, dataset, teacher, spec, shards, request.part))
    stages.sort(key=lambda stage: stage.teacher is not None)  # every dataset first, then teachers; the sort is stable
    return BuildPlan(request, tuple(stages))


def run_build(plan: BuildPlan, runner: Runner, progress: Progress) -> BuildReport:
    """Do what was planned, and return what came of it.

    Raises:
        BadRequest: the request cannot be served; shards committed so far stay.
    """
    request, report = plan.request, BuildReport()
    cache = Cache.create(request.cache)
    _write_promises(cache, plan)
    for stage in plan.stages:
        _run_stage(cache, stage, request, runner, progress, report)
    ledger = Ledger.load(cache.objects)
    ledger.compact()
    for stage in plan.stages:
        name = stage.dataset.spec.name
        if stage.teacher is None and ledger.of(name, None, PLAIN)["quarantined"].sum():
            report.quarantined[name] = cache.quarantined(name)
    return report


def _plan_dataset(cache: Cache | None, source: Source, job: str) -> PlannedDataset:
    known = cache is not None and source.name in cache.dataset_names()
    files = source.files()
    if not files["rows"].sum():
        raise MissingSource(f"dataset {source.name} is empty", found=f"{len(files)} files, no samples")
    recorded = RowPlan(())
    if known:
        assert cache is not None
        recorded, was = cache.plan(source.name), cache.dataset(source.name)
        spec = _dataset_spec(source, was.input_shape, was.input_dtype)
        check_spec(cache.objects, f"{source.name}/dataset.json", spec, job)
    else:
        spec = _dataset_spec(source, *_probe(source, files))
    rows_per_shard = source.rows_per_shard or default_rows_per_shard(spec.input_shape, spec.input_dtype)
    growth = grow(recorded, files, rows_per_shard)
    if growth.gone:
        raise StaleCache(
            f"dataset {source.name} has lost samples that {job}'s cache holds",
            found=f"{len(growth.gone)} files gone or shorter: {', '.join(growth.gone[:5])}",
            expected="every recorded sample, and perhaps new ones",
            do=f"put them back, or cache build {job} --as NAME",
        )
    mended = _compare(cache, source, recorded, growth.touched, job) if known and growth.touched and cache else ()
    segments = (*recorded.segments, growth.segment) if growth.segment else recorded.segments
    return PlannedDataset(source, spec, RowPlan(segments), growth.segment, mended)


def _dataset_spec(source: Source, input_shape: tuple[int, ...], input_dtype: str) -> DatasetSpec:
    return DatasetSpec(
        name=source.name,
        source=source.content(),
        classes=source.class_names(),
        input_shape=input_shape,
        input_dtype=input_dtype,
    )


def _probe(source: Source, files: pl.DataFrame) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of the first readable sample."""
    reasons = []
    samples = (
        sample
        for file, rows in files.select("file", "rows").iter_rows()
        for sample in source.read(file, 0, min(rows, PROBED_SAMPLES))
    )
    for sample in islice(samples, PROBED_SAMPLES):
        try:
            if isinstance(sample.payload, Unreadable):
                raise sample.payload
            first = source.decode(sample.payload)
        except Unreadable as reason:
            reasons.append(f"{sample.sample_id}: {reason}")
        else:
            return first.shape, str(first.dtype)
    raise MissingSource(f"dataset {source.name} has no readable sample", found="\n".join(reasons[:5]))


def _compare(cache: Cache, source: Source, recorded: RowPlan, touched: Sequence[str], job: str) -> tuple[int, ...]:
    """Compare the samples of touched files with what was ingested; return the shards whose unreadable ones are mended.

    Raises:
        StaleCache: a sample's content or label changed.
    """
    was = {
        row: (digest, error is None)
        for commit in cache.commits(source.name)
        for row, digest, error in zip(
            *commit.table.select(["row", "digest", "error"]).to_pydict().values(), strict=True
        )
    }
    changed, mended_rows, row = [], [], 0
    for extent in recorded.slice(0, recorded.num_rows):
        if extent.file in touched:
            for i, sample in enumerate(source.read(*extent), start=row):
                digest, readable = was.get(i, (sample.digest, True))  # not ingested yet, nothing to compare
                if digest != sample.digest:
                    if readable:
                        changed.append(sample.sample_id)
                    else:
                        mended_rows.append(i)
        row += extent.rows
    if changed:
        raise StaleCache(
            f"dataset {source.name} has changed under the cache {cache.url}",
            found=f"{len(changed)} samples with other content or another label: {', '.join(changed[:5])}",
            expected="recorded samples as they were, and perhaps new ones",
            do=f"cache build {job} --as NAME    # a new cache beside it; this one stays as it is",
        )
    shards = recorded.shards()
    return tuple(s.shard for s in shards if any(s.start <= row < s.stop for row in mended_rows))


def _num_classes(teacher: TeacherOptions, dataset: DatasetSpec) -> int:
    if not dataset.classes:
        raise BadRequest(
            f"dataset {dataset.name} has no classes, so teacher {teacher.name} cannot be checked against them",
            do="give the dataset's `classes`, or keep the teacher off it with `datasets = [...]`",
        )
    return len(dataset.classes)


def _plan_stage(
    cache: Cache | None,
    dataset: PlannedDataset,
    teacher: TeacherOptions | None,
    spec: TeacherSpec | None,
    shards: tuple[ShardRows, ...],
    part: tuple[int, int],
) -> Stage:
    name = None if teacher is None else teacher.name
    committed = set() if cache is None else cache.committed(dataset.spec.name, name) - set(dataset.mended)
    return Stage(dataset, teacher, spec, shards, tuple(missing(shards, committed, part)))


def _write_promises(cache: Cache, plan: BuildPlan) -> None:
    """Write every spec and every new segment, before any data."""
    for stage in plan.stages:
        dataset, name = stage.dataset, stage.dataset.spec.name
        if stage.spec is not None:
            write_spec(cache.objects, f"{name}/{stage.spec.name}/teacher.json", stage.spec, plan.request.job)
            continue
        write_spec(cache.objects, f"{name}/dataset.json", dataset.spec, plan.request.job)
        for (
            shard
        ) in dataset.mended:  # the ingest last, and the segment after it: killed here, the next build sees it again
            for teacher in [*cache.teacher_names(name), None]:
                cache.objects.delete(ShardKey(name, teacher, PLAIN, shard).commit_path)  # its arrays are garbage now
        if dataset.segment is not None:
            _append_segment(cache, dataset, plan.request.job)


def _append_segment(cache: Cache, dataset: PlannedDataset, job: str) -> None:
    """Append what is new to the frozen plan. Raises TryAgain if another builder has just appended something else."""
    name, segment = dataset.spec.name, dataset.segment
    assert segment is not None
    number = len(dataset.rows.segments) - 1
    if not create_segment(cache.objects, name, number, segment):
        theirs = cache.plan(name).segments[number]
        if (theirs.rows_per_shard, theirs.extents.rows()) != (segment.rows_per_shard, segment.extents.rows()):
            raise TryAgain(
                f"dataset {name} grew in two ways at once",
                found="another builder planned other rows a moment ago",
                do=f"cache build {job}    # again: it takes up what the other has planned",
            )


def _run_stage(
    cache: Cache, stage: Stage, request: BuildRequest, runner: Runner, progress: Progress, report: BuildReport
) -> None:
    source, dataset = stage.dataset.source, stage.dataset.spec.name
    todo = stage.todo
    if stage.teacher is not None and todo:
        ingested = cache.committed(dataset)  # a shard that another part has yet to ingest is that part's to teach
        todo = tuple(shard for shard in todo if shard.shard in ingested)
    report.present += len(stage.shards) - len(stage.todo)
    rows, rows_todo = stage.dataset.rows.num_rows, sum(shard.stop - shard.start for shard in stage.todo)
    progress.stage(stage.name, rows, rows - rows_todo)
    quarantined = 0
    if stage.teacher is None and todo:
        quarantined = int(Ledger.load(cache.objects).of(dataset, None, PLAIN)["quarantined"].sum())
    with contextlib.closing(runner(_tasks(stage, todo, request))) as results:  # an error cancels what is in flight
        for task, result in results:
            if isinstance(result, Done):
                quarantined += result.quarantined
                _count(report, result)
                progress.done(result)
            else:
                _set_aside(task, result, report, progress)
            if quarantined > source.max_quarantined * rows:
                raise _too_many_quarantined(cache, source, quarantined, rows)


def _too_many_quarantined(cache: Cache, source: Source, quarantined: int, rows: int) -> BadRequest:
    reasons = cache.quarantined(source.name).head(5)
    return BadRequest(
        f"too many samples of {source.name} cannot be read",
        found="\n".join(
            [f"{quarantined} of {rows} rows so far, such as"]
            + [f"{sample_id}: {error}" for sample_id, error in reasons.select("sample_id", "error").iter_rows()]
        ),
        expected=f"at most {source.max_quarantined:.2%} (max_quarantined)",
        do="mend them, or raise max_quarantined",
    )


def _tasks(stage: Stage, todo: Sequence[ShardRows], request: BuildRequest) -> Iterator[Task]:
    name = None if stage.teacher is None else stage.teacher.name
    options = (stage.teacher or stage.dataset.source).model_dump_json()
    for shard, start, stop in todo:
        yield Task(
            cache=request.cache,
            key=ShardKey(stage.dataset.spec.name, name, PLAIN, shard),
            start=start,
            stop=stop,
            options=options,
            promise="" if stage.spec is None else stage.spec.fingerprint,
            extents=tuple(stage.dataset.rows.slice(start, stop)) if stage.teacher is None else (),
            device=request.device,
            threads=request.threads,
        )


def _count(report: BuildReport, done: Done) -> None:
    report.built += done.won
    report.lost += not done.won
    report.rows += done.rows
    report.bytes += done.bytes


def _set_aside(task: Task, error: Exception, report: BuildReport, progress: Progress) -> None:
    """Keep a failed shard for the report; raise if every other shard would fail like it."""
    if isinstance(error, RowsMissing):
        report.refused.append(str(error))
        progress.note(str(error))
        return
    if isinstance(error, StillroomError) and not isinstance(error, CorruptObject):
        raise error
    known = isinstance(error, StillroomError | WorkerDied)
    report.failed.append(f"{task.key}: {error if known else repr(error)}")
    progress.note(report.failed[-1])
    if len(report.failed) >= SET_ASIDE_LIMIT:
        raise StillroomError("too many shards fail; the build stops", found="\n".join(report.failed)) from error
