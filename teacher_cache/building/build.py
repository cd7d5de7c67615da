"""The story of a build: write the promises, run the shards that are missing, say what happened.

The store is the truth, not the scheduler: resuming is to survey it again and do the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from storage.cache import TOKENIZER_JSON, Cache, Catalogue
from storage.cache.copies.publishing import write_notice
from storage.cache.watcher import Watcher
from storage.errors import BadRequest, IncompleteCache, MissingSource, StaleCache, TryAgain
from storage.format.ledger import Ledger
from storage.format.rows import ShardRows, create_segment, read_plan
from storage.format.shards import ShardKey
from storage.format.specs import DatasetSpec, write_spec
from storage.format.stages import VIEWS_JSON, list_stages
from storage.language.tokenizer import parse_tokenizer
from storage.views import PLAIN
from teacher_cache.building.prepared import BuildRequest, PreparedBuild, PreparedDataset, Stage
from teacher_cache.building.runners import Runner
from teacher_cache.building.stages import BuildReport, Stages
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.work.pieces import AskWork, Done, IngestWork


def run_build(build: PreparedBuild, runner: Runner, watcher: Watcher) -> BuildReport:
    """Do what was prepared, and return what came of it.

    Raises:
        BadRequest: the request cannot be served; shards committed so far stay.
        TryAgain: another builder has changed what the build was prepared from.
    """
    for note in build.notes:
        watcher.note(note)
    cache, names = Cache.create(build.request.cache), [source.name for source in build.request.sources]
    known = build.catalogue
    if known is not None and known.about.id != cache.id:
        raise TryAgain(
            f"{cache.url} is another cache than a moment ago",
            found=f"cache {cache.id}",
            expected=f"cache {known.about.id}",
            do=f"cache build {build.request.job}    # again: it looks at what is there now",
        )
    if build.request.notice is not None:  # before anything that it is to be about
        write_notice(cache, build.request.notice, build.request.job)
    _check_teachers(build)  # before anything is promised, or hours are spent on rows that it will not be asked about
    _write_promises(cache, build, known)  # first: a worker compares what it is about to write with them
    if cache.unproven is not None:
        watcher.note(cache.unproven)
    for name in _lost_views(cache, build):
        watcher.note(
            f"note: this job does not augment {name}, of which the cache has views ({name}/{VIEWS_JSON}): "
            "teachers are asked about its plain inputs, beside them"
        )
    known = known or cache.catalogue(names)
    ledger, stages = known.ledger(), Stages(cache, runner, watcher)
    # All ingests come first, so that a teacher's shards find their inputs.
    for stage in build.stages:
        if stage.teacher is None:
            _ingest(stages, stage, build.request, ledger)
        else:
            _ask(stages, stage, build.request)
    if build.num_missing:  # else nothing has changed, and nothing is read or written
        known = cache.catalogue(names)
        ledger = known.ledger()
    return stages.end(known, ledger)


def _check_teachers(build: PreparedBuild) -> None:
    """Check the files of each teacher that waits for rows to be read; of others the first task does it."""
    if any(stage.todo for stage in build.stages if stage.teacher is None):
        asked = [
            (stage.teacher, stage.dataset.spec) for stage in build.stages if stage.teacher is not None and stage.todo
        ]
        for teacher, dataset in {(each.name, of.name): (each, of) for each, of in asked}.values():
            KINDS[teacher.origin].check_files(teacher, dataset)


def _lost_views(cache: Cache, build: PreparedBuild) -> list[str]:
    """Return the datasets that the cache augments and the job does not, of which teachers are to be asked."""
    plain = {s.dataset.spec.name for s in build.stages if s.teacher is not None and s.todo and s.dataset.views is None}
    return [name for name in sorted(plain) if cache.views(name) is not None]


def _write_promises(cache: Cache, build: PreparedBuild, known: Catalogue | None) -> None:
    """Write every dataset's spec that is not known already, which was compared with the job's, and every new segment.

    That of a teacher is written when it has answered (`teacher_cache.work.promising`).
    """
    job = build.request.job
    for stage in build.stages:
        dataset, name = stage.dataset, stage.dataset.spec.name
        if stage.teacher is not None:
            continue
        if dataset.tokenizer is not None:  # before the promise, which names it by its fingerprint
            _write_tokenizer(cache, dataset, job)
        if known is None or name not in known.datasets:
            write_spec(cache.objects, f"{name}/dataset.json", dataset.spec, job)
        if dataset.views is not None and (known is None or name not in known.views):
            write_spec(cache.objects, f"{name}/{VIEWS_JSON}", dataset.views, job)
        for shard in stage.todo:
            if shard.shard in dataset.mended:
                _forget(cache, name, shard.shard, dataset.mended[shard.shard])
        if dataset.segment is not None:
            _append_segment(cache, dataset, job)


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
    # Create-only, so of two builders that see the source grow one wins; the same growth, seen twice, is no conflict.
    if not create_segment(cache.objects, name, number, segment):
        theirs = read_plan(cache.objects, name).segments[number]
        if (theirs.rows_per_shard, theirs.extents.rows()) != (segment.rows_per_shard, segment.extents.rows()):
            raise TryAgain(
                f"dataset {name} grew in two ways at once",
                found="another builder planned other rows a moment ago",
                do=f"cache build {job}    # again: it takes up what the other has planned",
            )


def _ingest(stages: Stages, stage: Stage, request: BuildRequest, before: Ledger) -> None:
    """Ingest what is missing of a dataset; `before` is the ledger as the build found it.

    Raises:
        BadRequest: too many samples are unreadable, or two of them have one id.
        MissingSource: there is nothing in any of its files.
    """
    cache, spec, all_at_once = stages.cache, stage.dataset.spec, request.part == (0, 1)
    told = before.of(spec.name, None, PLAIN)
    counts = _Ingested(rows=int(told["rows"].sum()), quarantined=int(told["quarantined"].sum()))
    expected = stage.dataset.guess_rows(stage.dataset.rows.num_rows)

    def on_done(done: Done) -> None:
        counts.add(done)
        _check_quarantined(cache, stage, counts.quarantined, max(counts.rows, expected))

    # the job may allow fewer than the last time
    _check_quarantined(cache, stage, counts.quarantined, max(counts.rows, expected) if stage.todo else counts.rows)
    pieces, measure = _ingest_work(stage, stage.todo, request), stage.dataset.measure_per_row
    stages.run(stage.name, stage.shards, stage.todo, pieces, on_done, unit=spec.planned_in, measure=measure)
    if all_at_once and not stages.report.failed:  # now it is known how many rows there are
        _check_quarantined(cache, stage, counts.quarantined, counts.rows)
        if not counts.rows:
            raise MissingSource(f"dataset {spec.name} is empty", found="nothing to make a row of in any of its files")
    for note in counts.notes(spec):
        stages.watcher.note(note)
    if stage.todo:
        _look_at_samples(stages, stage, request, all_at_once=all_at_once)


@dataclass
class _Ingested:
    """What the ingest of a dataset has come to.

    Attributes:
        rows, quarantined: how many there are, and how many of them are unreadable, those of earlier builds too.
        cut: of this build, rows that were longer than the dataset takes.
        packed: of this build, `rows` that are readable, and their `documents` and `tokens` where one may have several.
        remarks: of this build, what is to be told of samples, and of how many.
    """

    rows: int
    quarantined: int
    cut: int = 0
    packed: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)

    def add(self, done: Done) -> None:
        """Count a shard."""
        self.rows += done.rows
        self.quarantined += done.quarantined
        self.cut += done.cut
        self.packed.update(rows=done.rows - done.quarantined, documents=done.packed[0], tokens=done.packed[1])
        self.remarks.update(dict(done.remarks))

    def notes(self, dataset: DatasetSpec) -> Iterator[str]:
        """Yield what a user should know of the rows of this build."""
        if self.cut:
            limit = f"length = {dataset.input_shape[0]}"
            yield f"note: {self.cut} rows of {dataset.name} are longer than {limit}; what is behind it was cut off"
        if self.packed["documents"]:
            length = dataset.input_shape[0]
            full = self.packed["tokens"] / (self.packed["rows"] * length)
            yield (
                f"note: {self.packed['documents']:,} documents of {dataset.name} are packed into "
                f"{self.packed['rows']:,} rows of up to {length:,} tokens, {full:.1%} full"
            )
        for remark, count in self.remarks.items():
            yield f"warning: {dataset.name}: {count} {remark}"


def _look_at_samples(stages: Stages, stage: Stage, request: BuildRequest, *, all_at_once: bool) -> None:
    """Look at all samples of a dataset together, which no worker sees: ids that come twice, repeats, splits.

    Raises:
        BadRequest: two samples have one id.
    """
    dataset = stage.dataset.spec.name
    samples = stages.cache.samples([dataset], ())
    if len(twice := samples.duplicates(dataset)):
        raise BadRequest(
            f"dataset {dataset} gives one id to several samples",
            found=", ".join(twice["sample_id"].head(5)),
            expected="a permanent id for each sample",
            do=f"mend the ids, then cache build {request.job} --as NAME",
        )
    stages.report.repeats += samples.repeats(dataset).lines(dataset)
    share, splits = stage.dataset.source.validation, set(samples.of(dataset, columns=["split"])["split"])
    if share and len(splits) == 1 and all_at_once:  # a part may not have the others yet
        use = "to train on" if splits == {"validation"} else "to evaluate on"
        stages.watcher.note(f"warning: validation = {share} leaves no row of {dataset} {use}")


def _ask(stages: Stages, stage: Stage, request: BuildRequest) -> None:
    """Ask a teacher about what is missing of a view."""
    todo = stage.todo
    if todo:  # a shard that another part has yet to ingest is that part's to ask about
        ingested = stages.cache.committed(stage.dataset.spec.name)
        todo = [shard for shard in todo if shard.shard in ingested]
    told: set[int] = set()

    def on_done(done: Done) -> None:
        teacher, fitting = stage.teacher, done.batch_size
        if teacher is not None and fitting is not None and fitting not in told:
            told.add(fitting)
            stages.watcher.note(
                f"note: teacher {teacher.name}: {teacher.batch_size} rows at a time do not fit into memory; asked "
                f"about {fitting} at a time (batch_size = {fitting} in [[teacher]] saves the tries)"
            )

    pieces, unit = _ask_work(stage, todo, request), stage.dataset.spec.planned_in
    measure = stage.dataset.measure_per_row
    stages.run(stage.name, stage.shards, stage.todo, pieces, on_done, unit=unit, measure=measure)


def _ingest_work(stage: Stage, todo: Sequence[ShardRows], request: BuildRequest) -> Iterator[IngestWork]:
    dataset = stage.dataset
    source = dataset.source.model_dump_json()
    for shard, start, stop in todo:
        key, extents = ShardKey(dataset.spec.name, None, PLAIN, shard), tuple(dataset.rows.slice(start, stop))
        yield IngestWork(request.cache, key, (start, stop), source, extents)


def _ask_work(stage: Stage, todo: Sequence[ShardRows], request: BuildRequest) -> Iterator[AskWork]:
    assert stage.teacher is not None
    assert stage.spec is not None
    teacher, promise = stage.teacher.model_dump_json(), stage.spec.model_dump_json()
    for shard, start, stop in todo:
        key = ShardKey(stage.dataset.spec.name, stage.teacher.name, stage.view, shard)
        yield AskWork(request.cache, key, (start, stop), teacher, promise, request.job, request.device, request.threads)


def _check_quarantined(cache: Cache, stage: Stage, quarantined: int, rows: int) -> None:
    """Raise BadRequest if more of some rows are unreadable than the job allows."""
    source = stage.dataset.source
    if quarantined - stage.dataset.withdrawn <= source.max_quarantined * rows:
        return
    reasons = cache.samples([source.name], ()).quarantined(source.name).head(5)
    raise BadRequest(
        f"too many samples of {source.name} cannot be read",
        found="\n".join(
            [f"{quarantined} of {rows} rows so far, such as"]
            + [f"{sample_id}: {error}" for sample_id, error in reasons.select("sample_id", "error").iter_rows()]
        ),
        expected=f"at most {source.max_quarantined:.2%} (max_quarantined)",
        do="mend them where they lie, or delete them; or raise max_quarantined; then run the same command again",
    )
