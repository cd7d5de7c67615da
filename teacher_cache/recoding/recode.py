"""The story of a recoding: a smaller cache from a richer one, without the teacher.

Everything but the teachers' arrays is copied as it is: promises of datasets and views, tokenizers, plans, ingest
shards, per-sample tables, fingerprints of what the teacher saw. Soft targets are decoded and encoded again
(`teacher_cache.work.conversions` says what may become what); features may be fewer, and are otherwise the same.

What comes out is a cache like any other: `cache build` with the same job goes on where the richer one ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from storage.cache import TOKENIZER_JSON, Cache, Catalogue
from storage.cache.copies.copy import copy_object
from storage.cache.copies.publishing import write_notice
from storage.cache.watcher import Watcher
from storage.errors import BadRequest, IncompleteCache, MissingObject, StaleCache
from storage.format.rows import ShardRows, segment_path
from storage.format.shards import ShardKey
from storage.format.specs import WEIGHTS_JSON, TeacherSpec, write_spec
from storage.format.stages import VIEWS_JSON
from storage.views import PLAIN
from teacher_cache.building.prepared import BuildRequest, stage_name
from teacher_cache.building.runners import Runner
from teacher_cache.building.stages import BuildReport, Stages
from teacher_cache.recoding.promises import check_dataset, recoded_spec, wanted_views
from teacher_cache.work.pieces import RecodeWork


class RecodeStage(NamedTuple):
    """The ingest of a dataset, or one teacher over one view of it.

    Attributes:
        spec: what the smaller cache promises of the teacher.
        shards: those that the richer cache holds.
        missing: how many more are planned.
    """

    dataset: str
    teacher: str | None
    view: str
    spec: TeacherSpec | None
    shards: tuple[ShardRows, ...]
    missing: int

    @property
    def name(self) -> str:
        return stage_name(self.dataset, self.teacher, self.view)


@dataclass(frozen=True)
class PreparedRecoding:
    """Everything that a recoding will do; nothing is done yet.

    Attributes:
        source: what the richer cache holds.
        request: for the smaller one.
        stages: ingests first.
        notice: of the richer cache; what may be done with it goes on for what is made of it.
    """

    source: Catalogue
    request: BuildRequest
    stages: tuple[RecodeStage, ...]
    notice: str | None = None

    @property
    def missing(self) -> dict[str, int]:
        """Stage → shards that the richer cache lacks."""
        return {stage.name: stage.missing for stage in self.stages if stage.missing}


def prepare_recoding(richer: Cache, request: BuildRequest) -> PreparedRecoding:
    """Return what a recoding would do. Reads only, and loads no teacher.

    Args:
        richer: the cache to recode from.
        request: the job of the smaller one, as `cache build` would ask it.

    Raises:
        BadRequest: source and target are the same place.
        NotInCache: a dataset, teacher, view or feature is not in the richer cache.
        MissingCapability: what it holds is not enough.
        StaleCache: it was made from another dataset, teacher or views than the job says.
    """
    _check_apart(richer, request)
    source = richer.catalogue(_datasets(request), with_plans=True)
    stages: list[RecodeStage] = []
    for options in request.sources:
        dataset = source.dataset(options.name)
        check_dataset(source, dataset, options, request.job)
        stages.append(_stage(source, dataset.name, None, PLAIN, None))
        for teacher in request.teachers:
            if teacher.datasets is None or dataset.name in teacher.datasets:
                spec = recoded_spec(source, dataset, teacher, request.job)
                stages += [
                    _stage(source, dataset.name, teacher.name, view, spec)
                    for view in wanted_views(source, dataset, teacher, request)
                ]
    if not any(stage.shards for stage in stages):
        raise IncompleteCache(f"{source.url} holds nothing of this job yet", do="cache build JOB.toml")
    stages.sort(key=lambda stage: stage.teacher is not None)  # inputs before targets; the sort is stable
    return PreparedRecoding(source, request, tuple(stages), richer.notice)


def run_recode(recoding: PreparedRecoding, runner: Runner, watcher: Watcher) -> BuildReport:
    """Make what is missing of the smaller cache, and return what came of it.

    Raises:
        StaleCache: the target was built by another job.
    """
    source, request = recoding.source, recoding.request
    cache = Cache.create(request.cache)
    if (notice := request.notice or recoding.notice) is not None:
        write_notice(cache, notice, request.job if request.notice else source.url)
    try:
        _write_promises(source, cache, recoding)
    except StaleCache as error:
        do = f"cache recode {source.url} {request.job} --as NAME    # a new cache beside it"
        raise StaleCache(error.what, error.found, error.expected, do) from None
    before, stages = cache.catalogue(_datasets(request)), Stages(cache, runner, watcher)
    for stage in recoding.stages:
        committed = before.committed(stage.dataset, stage.teacher, stage.view)
        todo = [shard for shard in stage.shards if shard.shard not in committed]
        if stage.teacher is not None and todo:  # a shard whose inputs could not be copied cannot be recoded either
            ready = cache.committed(stage.dataset)
            pieces = _work(recoding, stage, [shard for shard in todo if shard.shard in ready])
        else:
            pieces = _work(recoding, stage, todo)
        stages.run(stage.name, stage.shards, todo, pieces, unit=source.dataset(stage.dataset).planned_in)
    catalogue = cache.catalogue(_datasets(request))
    return stages.end(catalogue, catalogue.ledger())


def needs_runner(recoding: PreparedRecoding) -> bool:
    """Return whether there is anything to run: a cluster for nothing would cost seconds."""
    cache = Cache.find(recoding.request.cache)
    if cache is None:
        return True
    there = cache.catalogue(_datasets(recoding.request))
    return any(
        {shard.shard for shard in stage.shards} - there.committed(stage.dataset, stage.teacher, stage.view)
        for stage in recoding.stages
    )


def _datasets(request: BuildRequest) -> list[str]:
    return [source.name for source in request.sources]


def _check_apart(source: Cache, request: BuildRequest) -> None:
    target = Cache.find(request.cache)
    if target is not None and target.spec.format < min(source.spec.format, 3):
        what, found = (
            "an older cache cannot take what a newer one holds",
            f"format {target.spec.format} at {target.url}",
        )
    elif target is not None and target.id == source.id:
        what, found = "the job's cache is the very one to recode from", f"cache {source.id} at {request.cache}"
    elif f"{request.cache}/".startswith(f"{source.url}/") or f"{source.url}/".startswith(f"{request.cache}/"):
        what, found = "one cache would lie inside the other", f"{source.url} and {request.cache}"
    else:
        return
    raise BadRequest(
        what, found=found, expected="another folder", do=f"cache recode {source.url} {request.job} --as NAME"
    )


def _stage(source: Catalogue, dataset: str, teacher: str | None, view: str, spec: TeacherSpec | None) -> RecodeStage:
    committed = source.committed(dataset, teacher, view)
    if teacher is not None:
        committed &= source.committed(dataset)
    shards = source.shards(dataset)
    there = tuple(shard for shard in shards if shard.shard in committed)
    return RecodeStage(dataset, teacher, view, spec, there, len(shards) - len(there))


def _write_promises(source: Catalogue, cache: Cache, recoding: PreparedRecoding) -> None:
    """Write every promise and every segment, before any data."""
    job = recoding.request.job
    for stage in recoding.stages:
        name = stage.dataset
        if stage.spec is not None:
            write_spec(cache.objects, f"{name}/{stage.spec.name}/teacher.json", stage.spec, job)
            with contextlib.suppress(MissingObject):  # of a cache from before weights were promised
                copy_object(source.objects, cache.objects, f"{name}/{stage.spec.name}/{WEIGHTS_JSON}")
            continue
        if source.tokenizer(name) is not None:  # and is the one that was promised
            copy_object(source.objects, cache.objects, f"{name}/{TOKENIZER_JSON}")
        write_spec(cache.objects, f"{name}/dataset.json", source.dataset(name), job)
        if name in source.views and any(other.dataset == name and other.view != PLAIN for other in recoding.stages):
            write_spec(cache.objects, f"{name}/{VIEWS_JSON}", source.views[name], job)
    for name in dict.fromkeys(stage.dataset for stage in recoding.stages):
        for number in range(len(source.plans[name].segments)):
            copy_object(source.objects, cache.objects, segment_path(name, number))


def _work(recoding: PreparedRecoding, stage: RecodeStage, todo: Sequence[ShardRows]) -> Iterator[RecodeWork]:
    """Yield the work of a stage, a shard each."""
    request = recoding.request
    for shard, _, _ in todo:
        key = ShardKey(stage.dataset, stage.teacher, stage.view, shard)
        yield RecodeWork(request.cache, key, recoding.source.url, request.device, request.threads)
