"""A source compared with what a cache holds of it: the promise, new rows, rows that changed, rows that are mended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from math import ceil, prod
from typing import Any

import numpy as np
import polars as pl

from storage.cache import Catalogue
from storage.datasets import RawSample, RecordedFile, Source, Unreadable
from storage.datasets.base import Density
from storage.datasets.text.blocks import BYTES_PER_TOKEN
from storage.encodings import AnyEncoding
from storage.errors import BadRequest, MissingSource, StaleCache
from storage.format.rows import RowPlan
from storage.format.shards import Commit
from storage.format.specs import BYTE_RANGES, ENCODED, OWN_LENGTH, PACKED, DatasetSpec, check_promise
from storage.language.tokenizer import difference
from storage.tasks import task_of
from teacher_cache.building.afresh import afresh
from teacher_cache.building.growth import default_rows_per_shard, default_sites_per_shard, grow
from teacher_cache.building.pictures import rows_of_kept
from teacher_cache.building.prepared import PreparedDataset
from teacher_cache.building.ranges import changed_under, compare_ranges
from teacher_cache.teachers.classes import check_distinct

CHANGES = {  # by the column of an ingest's table that tells it
    "payload_digest": "other content",
    "label_digest": "another label",
    "digest": "other content or another label",  # of format 2
}
PROBED_SAMPLES = 100  # read to learn the shape of an input; one readable sample among them is enough


def prepare_dataset(
    catalogue: Catalogue | None,
    options: Source,
    job: str,
    above: Mapping[str, PreparedDataset],
    encodings: Sequence[AnyEncoding] = (),
) -> PreparedDataset:
    """Return a dataset as a build will leave it, not augmented.

    Args:
        catalogue: of the cache to build, with its plans; None: there is none yet.
        options: of the dataset.
        job: the job's file, for messages.
        above: the datasets above this one in the job, by name.
        encodings: of the teachers that the job asks about it.

    Raises:
        BadRequest: the cache is of a format that has no place for it.
        StaleCache: the cache holds another dataset, or samples that have changed or are gone.
        MissingSource: it is not there, or none of its samples can be read.
    """
    copied = options.fetched()
    was = None if catalogue is None else catalogue.datasets.get(options.name)
    recorded = RowPlan(()) if catalogue is None or was is None else catalogue.plans[options.name]
    tokenizer = options.find_tokenizer(partial(_known_tokenizer, catalogue, above))
    if was is not None:
        options = options.as_promised(was.source)
    elif options.like_dataset is not None:
        options = options.as_other(_promise_of(catalogue, above, options))
    source = options.prepared(tokenizer, _counted(recorded))  # files that have not changed need not be counted again
    files = source.files()
    if not files["rows"].sum():
        where = getattr(source, "path", None)  # of what is no file there is none
        raise MissingSource(
            f"dataset {source.name} is empty" + (f": {where}" if where is not None else ""),
            found="\n".join([f"{len(files)} files, no samples", *source.notes()]),
            expected="one sample at least",
            do="mend `path`, or put the samples there; docs/jobs/datasets.md says which files are taken"
            if where is not None
            else "mend the function, so that it gives samples",
        )
    spec = _promise(catalogue, source, files, job)
    measure = source.measure_per_row()
    if source.rows_per_shard:
        rows_per_shard = measure * source.rows_per_shard
    else:  # once it is recorded, a plan is not cut again: only what is new is looked at
        density = source.density() if grow(recorded, files, 1).segment is not None else None
        rows_per_shard = default_cut(spec, int(files["rows"].sum()), measure, encodings, density)
        if spec.encoded:  # a photograph may be larger as its file than as the pixels that are left of it
            rows_per_shard = min(rows_per_shard, rows_of_kept(source, spec, files))
    growth, withdrawn = grow(recorded, files, rows_per_shard), {}
    if growth.gone and catalogue is not None:
        # in ranges a file is no row by itself, and rows are not what is planned
        withdrawn = {} if source.by_ranges else _never_read(catalogue, source.name, recorded, set(growth.gone))
        growth = grow(recorded, files, rows_per_shard, withdrawn)
        if growth.gone:
            raise _lost(catalogue, source.name, growth.gone, job)
    mended: dict[int, str] = {}
    if catalogue is not None and growth.touched:
        compare = compare_ranges if source.by_ranges else _compare
        mended = compare(catalogue, source, recorded, growth.touched, job)
    _check_mended(source.name, RowPlan(recorded.segments), mended, withdrawn)
    segments = (*recorded.segments, growth.segment) if growth.segment else recorded.segments
    notes = (*copied, *source.notes())
    if num_withdrawn := sum(len(rows) for rows in withdrawn.values()):
        notes += (f"the files of {num_withdrawn} rows that could never be read are gone; the rows stay unread",)
    if source.by_ranges and growth.segment is not None and growth.segment.num_rows:  # else files were touched alone
        guessed = -(-growth.segment.num_rows // measure)
        notes += (f"about {guessed:,} new rows; a text is counted when it is read",)
    return PreparedDataset(
        source, spec, RowPlan(segments), growth.segment, mended, tokenizer, None, notes, num_withdrawn, measure
    )


def _promise(catalogue: Catalogue | None, source: Source, files: pl.DataFrame, job: str) -> DatasetSpec:
    """Return the promise of a dataset, which the cache's own must not contradict."""
    was = None if catalogue is None else catalogue.datasets.get(source.name)
    if catalogue is not None and was is not None:
        spec = _dataset_spec(source, was.input_shape, was.input_dtype)  # what was learned once is not probed again
        _check_tokenizer(catalogue, was, spec, source, job)
        try:
            check_promise(catalogue.url, f"{source.name}/dataset.json", was, spec, job)
        except StaleCache as error:
            raise StaleCache(error.what, error.found, error.expected, afresh(catalogue, source.name, job)) from None
    else:
        spec = _dataset_spec(source, *(source.known_input() or _probe(source, files)))
    if catalogue is not None and catalogue.about.format < 3 and (spec.uses or spec.task):
        raise BadRequest(
            f"{catalogue.url} is of format {catalogue.about.format}, which has no place for {source.name}",
            found=", ".join([*spec.uses, *[f"task {spec.task}"] * bool(spec.task)]),
            expected="a cache of format 3",
            do=f"cache build {job} --as NAME    # a new cache beside it; this one stays as it is",
        )
    return spec


def _check_tokenizer(catalogue: Catalogue, was: DatasetSpec, now: DatasetSpec, source: Source, job: str) -> None:
    """Raise StaleCache if a dataset has another tokenizer than the cache's, with the first token that differs."""
    tokenizer = source.tokenizer_file()
    if tokenizer is None or was.tokenizer in (None, now.tokenizer):
        return
    there = catalogue.tokenizer(source.name)
    raise StaleCache(
        f"dataset {source.name} has another tokenizer than the cache {catalogue.url}",
        found=f"fingerprint {now.tokenizer}  ({job})"
        + ("" if there is None else f"\nfirst {difference(tokenizer, there)}"),
        expected=f"fingerprint {was.tokenizer}  ({source.name}/tokenizer.json)",
        do=afresh(catalogue, source.name, job),
    )


def default_cut(
    spec: DatasetSpec, total: int, measure: int, encodings: Sequence[AnyEncoding], density: Density | None = None
) -> int:
    """Return how much of a plan is a shard, in its measure.

    Args:
        spec: of the dataset.
        total: of the whole source, in the measure.
        measure: about how much of it is a row.
        encodings: of its teachers' targets.
        density: of a source in ranges; None: it is not known.
    """
    sites = task_of(spec).sites(spec.input_shape)
    if sites == ():
        return measure * default_rows_per_shard(spec.input_shape, spec.input_dtype, num_classes=spec.num_classes)
    site_bytes = max((encoding.bytes_per_row(spec.num_classes) for encoding in encodings), default=0)
    if density is not None:
        site_bytes = ceil(site_bytes * density.labelled / density.sites)  # targets are where a label is
        return max(1, round(default_sites_per_shard(round(total * density.sites), site_bytes) / density.sites))
    of_row = prod(sites)
    if spec.own_length and spec.byte_ranges:  # the longest tells little of the others, the bytes that one takes more
        of_row = max(1, min(of_row, measure // BYTES_PER_TOKEN))
    wanted = default_sites_per_shard(-(-total // measure) * of_row, site_bytes)
    return measure * max(1, wanted // of_row)


def _never_read(catalogue: Catalogue, dataset: str, recorded: RowPlan, files: set[str]) -> dict[str, list[int]]:
    """Return those of some files of which no sample could be read when it was ingested, with their rows."""
    unread = {
        row for commit in catalogue.read_commits(dataset) for row, (_, _, readable) in _recorded(commit) if not readable
    }
    rows_of: dict[str, list[int]] = {}
    row = 0
    for extent in recorded.slice(0, recorded.num_rows):
        if extent.file in files:
            rows_of.setdefault(extent.file, []).extend(range(row, row + extent.rows))
        row += extent.rows
    return {file: rows for file, rows in rows_of.items() if rows and unread.issuperset(rows)}


def _lost(catalogue: Catalogue, dataset: str, gone: Sequence[str], job: str) -> StaleCache:
    """Return the refusal of a source that has lost samples that a cache holds, or has planned to."""
    return StaleCache(
        f"dataset {dataset} has lost samples that {job}'s cache holds",
        found=f"{len(gone)} files gone or shorter: {', '.join(gone[:5])}",
        expected="every recorded sample, and perhaps new ones",
        do=f"put them back; or\n{afresh(catalogue, dataset, job)}",
    )


def _check_mended(
    dataset: str, recorded: RowPlan, mended: Mapping[int, str], withdrawn: Mapping[str, Sequence[int]]
) -> None:
    """Check that no shard that is to be built again holds a row whose file is gone: it could not even be named."""
    gone = {row: file for file, rows in withdrawn.items() for row in rows}
    for shard, start, stop in recorded.shards() if mended and gone else ():
        if shard in mended and (files := sorted({gone[row] for row in range(start, stop) if row in gone})):
            raise StaleCache(
                f"dataset {dataset} has mended samples in a shard of others whose files are gone",
                found=f"gone: {', '.join(files[:5])}",
                expected="every file of a shard that is built again, readable or not",
                do="put them back as they were, build, and delete them then",
            )


def _known_tokenizer(catalogue: Catalogue | None, above: Mapping[str, PreparedDataset], dataset: str) -> bytes | None:
    """Return the `tokenizer.json` of a dataset of the cache, or above in the job."""
    if (known := _with(catalogue, dataset)) is not None:
        tokenizer = known.tokenizer(dataset)
        return None if tokenizer is None else tokenizer.data
    return above[dataset].tokenizer if dataset in above else None


def _promise_of(catalogue: Catalogue | None, above: Mapping[str, PreparedDataset], options: Source) -> dict[str, Any]:
    """Return what a dataset of the cache, or above in the job, promises of its source.

    Raises:
        MissingSource: there is no such dataset.
    """
    name = options.like_dataset
    assert name is not None
    if (known := _with(catalogue, name)) is not None:
        return known.dataset(name).source
    if name in above:
        return above[name].spec.source
    raise MissingSource(
        f"dataset {options.name} wants the columns of {name}",
        found="no such dataset in the cache, nor above it in the job",
        do=f"put [[dataset]] {name} before {options.name}",
    )


def _with(catalogue: Catalogue | None, dataset: str) -> Catalogue | None:
    """Return a catalogue that has a dataset, which the job need not build; None: the cache has it not."""
    if catalogue is not None and dataset not in catalogue.datasets:
        catalogue = Catalogue.read(catalogue.objects, catalogue.about, [dataset], teachers=())
    return catalogue if catalogue is not None and dataset in catalogue.datasets else None


def _counted(recorded: RowPlan) -> dict[str, RecordedFile]:
    """Return what a plan says of each file: its size and version when it was last looked at, and its rows."""
    files = recorded.extents.group_by("file").agg(pl.col("size").last(), pl.col("version").last(), pl.col("rows").sum())
    return {file: RecordedFile(*facts) for file, *facts in files.iter_rows()}


def _class_names(source: Source) -> list[str]:
    names = source.class_names()
    check_distinct(f"dataset {source.name}", names)
    return names


def _dataset_spec(source: Source, input_shape: tuple[int, ...], input_dtype: str) -> DatasetSpec:
    tokens, longest = source.tokens(), source.longest_row()
    return DatasetSpec(
        name=source.name,
        source=source.content(),
        classes=_class_names(source),
        input_shape=input_shape if longest is None else (longest, *input_shape[1:]),
        input_dtype=input_dtype,
        vocabulary=None if tokens is None else tokens.vocabulary,
        tokenizer=None if tokens is None else tokens.tokenizer,
        uses=(
            *[OWN_LENGTH] * (longest is not None),
            *[BYTE_RANGES] * source.by_ranges,
            *[PACKED] * source.packs,
            *[ENCODED] * source.encoded,
        ),
        task=source.task_name(),
    )


def _probe(source: Source, files: pl.DataFrame) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of the first readable sample.

    Raises:
        MissingSource: none of the first is readable.
        BadRequest: of some that lie all over the files, not all are of one shape.
    """
    reasons = []
    samples = (
        sample
        for file, rows in files.select("file", "rows").iter_rows()
        for sample in source.read(file, 0, min(rows, PROBED_SAMPLES))
    )
    for sample in islice(samples, PROBED_SAMPLES):
        try:
            first = _decoded(source, sample)
        except Unreadable as reason:
            reasons.append(f"{sample.sample_id}: {reason}")
        else:
            if source.longest_row() is None:
                _check_one_shape(source, files)
            return first.shape, str(first.dtype)
    raise MissingSource(f"dataset {source.name} has no readable sample", found="\n".join(reasons[:5]))


def _check_one_shape(source: Source, files: pl.DataFrame) -> None:
    """Raise BadRequest if more samples differ in shape than may be set aside, rather than to set aside one by one."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for file, rows in files.gather_every(max(1, len(files) // PROBED_SAMPLES)).select("file", "rows").iter_rows():
        for sample in source.read(file, 0, min(rows, max(1, PROBED_SAMPLES // len(files)))):
            with suppress(Unreadable):  # which is told when it is its turn
                shapes.setdefault(_decoded(source, sample).shape, []).append(sample.sample_id)
    often = sorted(shapes.items(), key=lambda shape: -len(shape[1]))
    odd, looked_at = sum(len(ids) for _, ids in often[1:]), sum(map(len, shapes.values()))
    if odd > source.max_quarantined * looked_at:
        raise BadRequest(
            f"samples of dataset {source.name} have different shapes",
            found="\n".join(
                f"{list(shape)}: {len(ids)} of those looked at, such as {ids[0]}" for shape, ids in often[:5]
            ),
            expected="one shape, that of the teacher's inputs",
            do=f"size = {often[0][0][-1]}    # of images, in [[dataset]]: what the teacher was trained on",
        )


def _decoded(source: Source, sample: RawSample) -> np.ndarray:
    if isinstance(sample.payload, Unreadable):
        raise sample.payload
    return source.decode(sample.payload)


def _compare(
    catalogue: Catalogue, source: Source, recorded: RowPlan, touched: Sequence[str], job: str
) -> dict[int, str]:
    """Compare the samples of touched files with what was ingested; return the shards whose unreadable ones are mended.

    Raises:
        StaleCache: a sample's content or label changed.
    """
    commits = catalogue.read_commits(source.name)
    was = {row: recorded for commit in commits for row, recorded in _recorded(commit)}
    by_id = {sample_id: (digests, readable) for sample_id, digests, readable in was.values()}
    moved: list[str] = []
    changed: dict[str, list[str]] = {}
    mended_rows, row = [], 0
    for extent in recorded.slice(0, recorded.num_rows):
        if extent.file in touched:
            for i, sample in enumerate(source.read(extent.file, extent.position, extent.rows), start=row):
                if i not in was:
                    continue  # not ingested yet, nothing to compare
                was_here, digests, readable = was[i]
                elsewhere = sample.sample_id != was_here
                if elsewhere and sample.sample_id not in by_id:
                    changed.setdefault("another id", []).append(sample.sample_id)
                    continue
                if elsewhere:  # its own content then, not that of the row which was here
                    moved.append(sample.sample_id)
                    digests, readable = by_id[sample.sample_id]
                now = sample.digests(3 if "payload_digest" in digests else 2)
                for what in (name for name in digests if digests[name] != now[name]):
                    if readable:
                        changed.setdefault(CHANGES[what], []).append(sample.sample_id)
                    elif what != "label_digest":  # another label does not make a payload readable
                        mended_rows.append(i)  # a sample that could not be read may change: that is how it is mended
        row += extent.rows
    if moved and not changed:
        raise StaleCache(
            f"the rows of dataset {source.name} lie in another order than when they were ingested",
            found=f"{len(moved):,} of them elsewhere, none with other content: {', '.join(moved[:5])}",
            expected="each row where it was, and new ones behind the last: shards are rows of the file",
            do=f"write the file in its old order; or\n{afresh(catalogue, source.name, job)}",
        )
    if moved:
        changed["another place"] = moved
    if changed:
        told = "\n".join(f"{len(ids)} samples with {what}: {', '.join(ids[:5])}" for what, ids in changed.items())
        raise changed_under(catalogue, source, told, job)
    return {c.key.shard: c.attempt for c in commits if any(c.start <= row < c.stop for row in mended_rows)}


def _recorded(commit: Commit) -> Iterator[tuple[int, tuple[str, dict[str, str], bool]]]:
    """Yield each row of an ingest, with its id, its digests by name of column, and whether it could be read."""
    names = [name for name in CHANGES if name in commit.table.column_names]
    columns = commit.table.select(["row", "sample_id", "error", *names]).to_pydict().values()
    for row, sample_id, error, *digests in zip(*columns, strict=True):
        yield row, (sample_id, dict(zip(names, digests, strict=True)), error is None)
