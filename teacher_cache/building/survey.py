"""What a build will do: a job compared with what its cache holds. Reads only, and loads no teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import prod

import polars as pl

from storage.cache import TOKENIZER_JSON, Cache
from storage.datasets import RecordedFile, Source, Unreadable
from storage.errors import BadRequest, MissingSource, StaleCache
from storage.format.rows import RowPlan, Segment, ShardRows
from storage.format.shards import INGEST
from storage.format.specs import DatasetSpec, TeacherSpec, ViewsSpec, check_spec
from storage.format.stages import VIEWS_JSON
from storage.inputs import inputs_of
from storage.tasks import task_of
from storage.views import PLAIN, view_name
from storage.views.options import ViewOptions, unfit
from teacher_cache.building.growth import default_rows_per_shard, grow, missing
from teacher_cache.teachers.options import TeacherOptions, check_tokens

PROBED_SAMPLES = 100  # read to learn the shape of an input; one readable sample among them is enough


@dataclass(frozen=True)
class BuildRequest:
    """What a build is asked for.

    Attributes:
        cache: address of the cache.
        job: the job's file, for messages.
        sources, teachers, views: sections of the job.
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
    views: ViewOptions | None = None


@dataclass(frozen=True)
class PreparedDataset:
    """A dataset as this build will leave it.

    Attributes:
        rows: the plan, with `segment` at its end if the dataset is new or has grown.
        mended: shard → attempt of the commits whose quarantined samples can be read now; they are built again.
        tokenizer: of text, its `tokenizer.json`.
        views: which function of a sample its views are; None: it is not augmented.
    """

    source: Source
    spec: DatasetSpec
    rows: RowPlan
    segment: Segment | None
    mended: dict[int, str]
    tokenizer: bytes | None = None
    views: ViewsSpec | None = None


@dataclass(frozen=True)
class Stage:
    """The ingest of a dataset (no teacher), or one teacher over one view of it.

    Attributes:
        shards: those that fall to this part of the build.
        todo: those of them that are missing.
    """

    dataset: PreparedDataset
    teacher: TeacherOptions | None
    spec: TeacherSpec | None
    shards: tuple[ShardRows, ...]
    todo: tuple[ShardRows, ...]
    view: str = PLAIN

    @property
    def name(self) -> str:
        name = f"{self.dataset.spec.name}/{INGEST if self.teacher is None else self.teacher.name}"
        return name if self.view == PLAIN else f"{name}/{self.view}"


@dataclass(frozen=True)
class PreparedBuild:
    """Everything that a build will do; nothing is done yet."""

    request: BuildRequest
    stages: tuple[Stage, ...]

    @property
    def num_missing(self) -> int:
        """Shards to compute."""
        return sum(len(stage.todo) for stage in self.stages)


def prepare_build(request: BuildRequest) -> PreparedBuild:
    """Return what a build would do. Reads only; loads no teacher.

    Raises:
        StaleCache: the cache was built from another dataset, teacher, preprocessing or precision.
        MissingSource: a dataset or its weights are not there.
        BadRequest: the cache's folder holds something else.
    """
    return _plan(request, Cache.find(request.cache))


def prepare_afresh(request: BuildRequest) -> PreparedBuild:
    """Return what a build would do if nothing were built yet; whatever lies at the cache's address is not looked at.

    Raises:
        MissingSource, BadRequest: as `prepare_build`.
    """
    return _plan(request, None)


def _plan(request: BuildRequest, cache: Cache | None) -> PreparedBuild:
    stages = []
    tokenizers: dict[str, bytes | None] = {}
    for source in request.sources:
        dataset = _prepare_dataset(cache, source, request.job, tokenizers)
        if request.views is not None and is_augmented(request.views, dataset.spec):
            dataset = replace(dataset, views=_promise_views(cache, request.views, dataset.spec, request.job))
        tokenizers[source.name] = dataset.tokenizer
        known = cache is not None and source.name in cache.dataset_names()
        unbuilt = None if known else f"{request.cache}/{source.name}/{TOKENIZER_JSON}"
        shards = tuple(dataset.rows.shards())
        stages.append(_prepare_stage(cache, dataset, None, None, shards, request.part))
        for teacher in request.teachers:
            if teacher.datasets is None or source.name in teacher.datasets:
                check_tokens(teacher, dataset.spec, unbuilt)
                spec = teacher.promise(_num_classes(teacher, dataset.spec))
                if cache is not None and teacher.name in cache.teacher_names(source.name):
                    check_spec(cache.objects, f"{source.name}/{teacher.name}/teacher.json", spec, request.job)
                stages += [
                    _prepare_stage(cache, dataset, teacher, spec, shards, request.part, view)
                    for view in views_of(request.views, dataset.spec)
                ]
    if request.views is not None and all(stage.dataset.views is None for stage in stages):
        raise BadRequest(
            f"{request.job} asks for views, and no dataset can be augmented",
            found="\n".join(f"{s.dataset.spec.name}: {_inputs(s.dataset.spec)}" for s in stages if s.teacher is None),
            expected="images, uint8 (channels, height, width)",
            do="drop [views]",
        )
    stages.sort(key=lambda stage: stage.teacher is not None)  # every dataset first, then teachers; the sort is stable
    return PreparedBuild(request, tuple(stages))


def _prepare_dataset(
    cache: Cache | None, options: Source, job: str, tokenizers: Mapping[str, bytes | None]
) -> PreparedDataset:
    known = cache is not None and options.name in cache.dataset_names()
    recorded = cache.plan(options.name) if known and cache else RowPlan(())
    tokenizer = options.find_tokenizer(partial(_known_tokenizer, cache, tokenizers))
    if known and cache is not None:
        options = options.as_promised(cache.dataset(options.name).source)
    source = options.prepared(tokenizer, _counted(recorded))
    files = source.files()
    if not files["rows"].sum():
        raise MissingSource(f"dataset {source.name} is empty", found=f"{len(files)} files, no samples")
    if known:
        assert cache is not None
        was = cache.dataset(source.name)
        spec = _dataset_spec(source, was.input_shape, was.input_dtype)
        check_spec(cache.objects, f"{source.name}/dataset.json", spec, job)
    else:
        spec = _dataset_spec(source, *_probe(source, files))
    rows_per_shard = source.rows_per_shard or default_rows_per_shard(
        spec.input_shape,
        spec.input_dtype,
        num_sites=prod(task_of(spec).sites(spec.input_shape)),
        num_classes=spec.num_classes,
    )
    growth = grow(recorded, files, rows_per_shard)
    if growth.gone:
        raise StaleCache(
            f"dataset {source.name} has lost samples that {job}'s cache holds",
            found=f"{len(growth.gone)} files gone or shorter: {', '.join(growth.gone[:5])}",
            expected="every recorded sample, and perhaps new ones",
            do=f"put them back, or cache build {job} --as NAME; or delete the cache, if you want nothing that it holds",
        )
    mended = _compare(cache, source, recorded, growth.touched, job) if known and growth.touched and cache else {}
    segments = (*recorded.segments, growth.segment) if growth.segment else recorded.segments
    return PreparedDataset(source, spec, RowPlan(segments), growth.segment, mended, tokenizer)


def _known_tokenizer(cache: Cache | None, tokenizers: Mapping[str, bytes | None], dataset: str) -> bytes | None:
    """Return the `tokenizer.json` of a dataset of the cache, or above in the job."""
    if cache is not None and dataset in cache.dataset_names():
        tokenizer = cache.tokenizer(dataset)
        return None if tokenizer is None else tokenizer.data
    return tokenizers.get(dataset)


def _counted(recorded: RowPlan) -> dict[str, RecordedFile]:
    """Return what a plan says of each file: its size and version when it was last looked at, and its rows."""
    files = recorded.extents.group_by("file").agg(pl.col("size").last(), pl.col("version").last(), pl.col("rows").sum())
    return {file: RecordedFile(*facts) for file, *facts in files.iter_rows()}


def _dataset_spec(source: Source, input_shape: tuple[int, ...], input_dtype: str) -> DatasetSpec:
    tokens = source.tokens()
    return DatasetSpec(
        name=source.name,
        source=source.content(),
        classes=source.class_names(),
        input_shape=input_shape,
        input_dtype=input_dtype,
        vocabulary=None if tokens is None else tokens.vocabulary,
        tokenizer=None if tokens is None else tokens.tokenizer,
        task=source.task_name(),
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


def _compare(cache: Cache, source: Source, recorded: RowPlan, touched: Sequence[str], job: str) -> dict[int, str]:
    """Compare the samples of touched files with what was ingested; return the shards whose unreadable ones are mended.

    Raises:
        StaleCache: a sample's content or label changed.
    """
    commits = cache.commits(source.name)
    was = {
        row: (digest, error is None)
        for commit in commits
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
    return {c.key.shard: c.attempt for c in commits if any(c.start <= row < c.stop for row in mended_rows)}


def _num_classes(teacher: TeacherOptions, dataset: DatasetSpec) -> int:
    if not dataset.num_classes:
        raise BadRequest(
            f"dataset {dataset.name} has no classes, so teacher {teacher.name} cannot be checked against them",
            do="give the dataset's `classes`, or keep the teacher off it with `datasets = [...]`",
        )
    return dataset.num_classes


def is_augmented(options: ViewOptions, dataset: DatasetSpec) -> bool:
    """Return whether a job wants views of a dataset: it names it, or names none and this one holds images."""
    if options.datasets is not None:
        return dataset.name in options.datasets
    return inputs_of(dataset).has_views(dataset.input_shape)


def _promise_views(cache: Cache | None, options: ViewOptions, dataset: DatasetSpec, job: str) -> ViewsSpec:
    """Return the promise of a dataset's views.

    Raises:
        BadRequest: its inputs cannot be augmented so.
        StaleCache: the cache has views of other transforms or another seed.
    """
    if (reason := unfit(options.transforms, dataset.input_shape, dataset.input_dtype)) is not None:
        raise BadRequest(
            f"dataset {dataset.name} cannot be augmented: {reason}",
            found=_inputs(dataset),
            expected="images, uint8 (channels, height, width), which every transform fits",
            do="name in `datasets` of [views] those that are to be augmented, or change its transforms",
        )
    spec = ViewsSpec(name=dataset.name, seed=options.seed, transforms=tuple(options.transforms))
    known = cache is not None and dataset.name in cache.dataset_names()
    if known and cache is not None and cache.views(dataset.name) is not None:
        check_spec(cache.objects, f"{dataset.name}/{VIEWS_JSON}", spec, job)
    return spec


def views_of(options: ViewOptions | None, dataset: DatasetSpec) -> list[str]:
    """Return the views about which teachers are asked."""
    if options is None or not is_augmented(options, dataset):
        return [PLAIN]
    return [*([PLAIN] if options.plain else []), *map(view_name, range(options.count))]


def _inputs(dataset: DatasetSpec) -> str:
    return f"{dataset.input_dtype} {dataset.input_shape}"


def _prepare_stage(
    cache: Cache | None,
    dataset: PreparedDataset,
    teacher: TeacherOptions | None,
    spec: TeacherSpec | None,
    shards: tuple[ShardRows, ...],
    part: tuple[int, int],
    view: str = PLAIN,
) -> Stage:
    name = None if teacher is None else teacher.name
    committed = set() if cache is None else cache.committed(dataset.spec.name, name, view) - dataset.mended.keys()
    return Stage(
        dataset, teacher, spec, tuple(missing(shards, set(), part)), tuple(missing(shards, committed, part)), view
    )
