"""The story of a build: write the promises, run the shards that are missing, say what happened.

The store is the truth, not the scheduler: resuming is to survey it again and do the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import polars as pl

from storage.cache import TOKENIZER_JSON, Cache
from storage.errors import (
    BadRequest,
    CorruptObject,
    IncompleteCache,
    RowsMissing,
    StaleCache,
    StillroomError,
    TryAgain,
    WorkerDied,
)
from storage.format.ledger import Ledger
from storage.format.rows import ShardRows, create_segment
from storage.format.shards import ShardKey
from storage.format.specs import write_spec
from storage.format.stages import VIEWS_JSON, list_stages
from storage.tokenizer import parse_tokenizer
from storage.views import PLAIN
from teacher_cache.building.runners import Runner
from teacher_cache.building.survey import BuildRequest, PreparedBuild, PreparedDataset, Stage
from teacher_cache.work.pieces import AskWork, Done, IngestWork, Work

COMPACT_EVERY_SHARDS = 1000  # so that `cache status` stays quick beside a long build
SET_ASIDE_LIMIT = 5  # shards that fail for no known reason before the build stops


@dataclass
class BuildReport:
    """What a build did.

    Attributes:
        built: shards committed by this command, in all its stages.
        present: shards of this part that were there before.
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


def run_build(plan: PreparedBuild, runner: Runner, progress: Progress) -> BuildReport:
    """Do what was planned, and return what came of it.

    Raises:
        BadRequest: the request cannot be served; shards committed so far stay.
    """
    request, report = plan.request, BuildReport()
    cache = Cache.create(request.cache)
    _write_promises(cache, plan)
    for name in _lost_views(cache, plan):
        progress.note(
            f"note: this job does not augment {name}, of which the cache has views ({name}/{VIEWS_JSON}): "
            "teachers are asked about its plain inputs, beside them"
        )
    ledger = cache.catalogue().ledger()
    for stage in plan.stages:
        _run_stage(cache, stage, request, runner, progress, report, ledger)
    if plan.num_missing:
        ledger = cache.catalogue().ledger()
    ledger.compact()
    for stage in plan.stages:
        name = stage.dataset.spec.name
        if stage.teacher is None and ledger.of(name, None, PLAIN)["quarantined"].sum():
            report.quarantined[name] = cache.quarantined(name)
    return report


def _lost_views(cache: Cache, plan: PreparedBuild) -> list[str]:
    """Return the datasets that the cache augments and the job does not, of which teachers are to be asked."""
    plain = {s.dataset.spec.name for s in plan.stages if s.teacher is not None and s.todo and s.dataset.views is None}
    return [name for name in sorted(plain) if cache.views(name) is not None]


def _write_promises(cache: Cache, plan: PreparedBuild) -> None:
    """Write every spec and every new segment, before any data."""
    for stage in plan.stages:
        dataset, name = stage.dataset, stage.dataset.spec.name
        if stage.spec is not None:
            write_spec(cache.objects, f"{name}/{stage.spec.name}/teacher.json", stage.spec, plan.request.job)
            continue
        if dataset.tokenizer is not None:
            _write_tokenizer(cache, dataset, plan.request.job)
        write_spec(cache.objects, f"{name}/dataset.json", dataset.spec, plan.request.job)
        if dataset.views is not None:
            write_spec(cache.objects, f"{name}/{VIEWS_JSON}", dataset.views, plan.request.job)
        for shard in stage.todo:
            if shard.shard in dataset.mended:
                _forget(cache, name, shard.shard, dataset.mended[shard.shard])
        if dataset.segment is not None:
            _append_segment(cache, dataset, plan.request.job)


def _write_tokenizer(cache: Cache, dataset: PreparedDataset, job: str) -> None:
    """Create a dataset's `tokenizer.json`. Raises StaleCache if another is there, left by a build that was stopped."""
    assert dataset.tokenizer is not None
    path = f"{dataset.spec.name}/{TOKENIZER_JSON}"
    if cache.objects.create(path, dataset.tokenizer):
        return
    found = parse_tokenizer(cache.objects.get(path), f"{cache.url}/{path}").fingerprint
    if found != dataset.spec.tokenizer:
        raise StaleCache(
            f"{cache.url}/{path} is another tokenizer than this job's",
            found=f"fingerprint {found}",
            expected=f"fingerprint {dataset.spec.tokenizer}  ({job})",
            do=f"cache build {job} --as NAME    # a new cache beside it; this one stays as it is",
        )


def _forget(cache: Cache, dataset: str, shard: int, attempt: str) -> None:
    """Drop a shard whose unreadable samples are mended, unless another builder has replaced it since it was looked at.

    The ingest last, so that a kill in between leaves it to the next build. Its arrays are garbage from then on.
    """
    ingest = ShardKey(dataset, None, PLAIN, shard)
    try:
        if cache.commit(ingest).attempt != attempt:
            return
    except IncompleteCache:
        return
    for _, teacher, view in reversed(list_stages(cache.objects, [dataset])):
        cache.objects.delete(ShardKey(dataset, teacher, view, shard).commit_path)


def _append_segment(cache: Cache, dataset: PreparedDataset, job: str) -> None:
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
    cache: Cache,
    stage: Stage,
    request: BuildRequest,
    runner: Runner,
    progress: Progress,
    report: BuildReport,
    before: Ledger,
) -> None:
    """Run what is missing of a stage; `before` is the ledger as the build found it."""
    dataset, todo = stage.dataset.spec.name, stage.todo
    if stage.teacher is not None and todo:
        ingested = cache.committed(dataset)  # a shard that another part has yet to ingest is that part's to teach
        todo = tuple(shard for shard in todo if shard.shard in ingested)
    report.present += len(stage.shards) - len(stage.todo)
    of_this_part, missing = (sum(shard.stop - shard.start for shard in shards) for shards in (stage.shards, stage.todo))
    progress.stage(stage.name, of_this_part, of_this_part - missing)
    quarantined = 0
    if stage.teacher is None:
        quarantined = int(before.of(dataset, None, PLAIN)["quarantined"].sum())
        _check_quarantined(cache, stage, quarantined)
    with contextlib.closing(runner(_pieces(stage, todo, request))) as results:  # an error cancels what is in flight
        for work, result in results:
            if isinstance(result, Done):
                quarantined += result.quarantined
                count_done(report, result)
                progress.done(result)
                if result.won and report.built % COMPACT_EVERY_SHARDS == 0:
                    cache.catalogue().ledger().compact()
            else:
                set_aside(work, result, report, progress)
            _check_quarantined(cache, stage, quarantined)
    if stage.teacher is None and todo and (twice := cache.duplicate_ids(dataset)):
        raise BadRequest(
            f"dataset {dataset} gives one id to several samples",
            found=", ".join(twice),
            expected="a permanent id for each sample",
            do=f"mend the ids, then cache build {request.job} --as NAME",
        )


def _check_quarantined(cache: Cache, stage: Stage, quarantined: int) -> None:
    """Raise BadRequest if more samples are unreadable than the job allows."""
    source, rows = stage.dataset.source, stage.dataset.rows.num_rows
    if quarantined <= source.max_quarantined * rows:
        return
    reasons = cache.quarantined(source.name).head(5)
    raise BadRequest(
        f"too many samples of {source.name} cannot be read",
        found="\n".join(
            [f"{quarantined} of {rows} rows so far, such as"]
            + [f"{sample_id}: {error}" for sample_id, error in reasons.select("sample_id", "error").iter_rows()]
        ),
        expected=f"at most {source.max_quarantined:.2%} (max_quarantined)",
        do="mend them where they lie (without them it would be another dataset), or raise max_quarantined",
    )


def _pieces(stage: Stage, todo: Sequence[ShardRows], request: BuildRequest) -> Iterator[Work]:
    """Yield the work of a stage, a shard each."""
    dataset = stage.dataset
    for shard, start, stop in todo:
        if stage.teacher is None:
            key = ShardKey(dataset.spec.name, None, stage.view, shard)
            extents = tuple(dataset.rows.slice(start, stop))
            yield IngestWork(request.cache, key, (start, stop), dataset.source.model_dump_json(), extents)
        else:
            assert stage.spec is not None
            yield AskWork(
                request.cache,
                ShardKey(dataset.spec.name, stage.teacher.name, stage.view, shard),
                (start, stop),
                teacher=stage.teacher.model_dump_json(),
                promise=stage.spec.fingerprint,
                device=request.device,
                threads=request.threads,
            )


def count_done(report: BuildReport, done: Done) -> None:
    """Count a finished shard."""
    report.built += done.won
    report.lost += not done.won
    report.rows += done.rows
    report.bytes += done.bytes


def set_aside(work: Work, error: Exception, report: BuildReport, progress: Progress) -> None:
    """Keep a failed shard for the report; raise if every other shard would fail like it."""
    if isinstance(error, RowsMissing):
        report.refused.append(str(error))
        progress.note(str(error))
        return
    if isinstance(error, StillroomError) and not isinstance(error, CorruptObject | WorkerDied):
        raise error
    reason = error.what if isinstance(error, WorkerDied) else str(error)
    report.failed.append(f"{work.key}: {reason if isinstance(error, StillroomError) else repr(error)}")
    progress.note(report.failed[-1])
    if len(report.failed) >= SET_ASIDE_LIMIT:
        raise StillroomError("too many shards fail; the build stops", found="\n".join(report.failed)) from error
