"""A source becomes a dataset as a build will leave it: promised, grown, compared with what the cache holds of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import polars as pl

from storage.cache import Catalogue
from storage.datasets import RecordedFile, Source
from storage.encodings import AnyEncoding
from storage.errors import MissingSource
from storage.format.rows import RowPlan, Segment
from teacher_cache.building.prepared import PreparedDataset
from teacher_cache.building.sources.changes import check_mended, compare_rows, lost, never_read
from teacher_cache.building.sources.cutting import choose_cut
from teacher_cache.building.sources.growth import Growth, grow
from teacher_cache.building.sources.promise import promise_dataset
from teacher_cache.building.sources.ranges import compare_ranges


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
    recorded = RowPlan(())
    if catalogue is not None and options.name in catalogue.datasets:
        recorded = catalogue.plans[options.name]
    source, tokenizer = _opened(catalogue, options, above, recorded)
    files = source.files()
    _check_not_empty(source, files)
    spec = promise_dataset(catalogue, source, files, job)

    growth, withdrawn = _grown(catalogue, source, files, recorded, choose_cut(source, spec, files, recorded, encodings))
    if catalogue is not None and growth.gone:
        raise lost(catalogue, source.name, growth.gone, job)
    mended: dict[int, str] = {}
    if catalogue is not None and growth.touched:
        compare = compare_ranges if source.by_ranges else compare_rows
        mended = compare(catalogue, source, recorded, growth.touched, job)
    check_mended(source.name, recorded, mended, withdrawn)

    num_withdrawn = sum(map(len, withdrawn.values()))
    return PreparedDataset(
        source=source,
        spec=spec,
        rows=RowPlan((*recorded.segments, growth.segment)) if growth.segment else recorded,
        segment=growth.segment,
        mended=mended,
        tokenizer=tokenizer,
        views=None,
        notes=(*copied, *source.notes(), *_told(source, growth.segment, num_withdrawn)),
        withdrawn=num_withdrawn,
        measure_per_row=source.measure_per_row(),
    )


def _opened(
    catalogue: Catalogue | None, options: Source, above: Mapping[str, PreparedDataset], recorded: RowPlan
) -> tuple[Source, bytes | None]:
    """Return a source as the cache's promise or another dataset's has it, and its `tokenizer.json`, if it has one."""
    tokenizer = options.find_tokenizer(partial(_known_tokenizer, catalogue, above))
    was = None if catalogue is None else catalogue.datasets.get(options.name)
    if was is not None:
        options = options.as_promised(was.source)
    elif options.like_dataset is not None:
        options = options.as_other(_promise_of(catalogue, above, options))
    return options.prepared(
        tokenizer, _counted(recorded)
    ), tokenizer  # files that have not changed are not counted again


def _check_not_empty(source: Source, files: pl.DataFrame) -> None:
    """Raise MissingSource if a source has no sample."""
    if files["rows"].sum():
        return
    where = getattr(source, "path", None)  # of what is no file there is none
    raise MissingSource(
        f"dataset {source.name} is empty" + (f": {where}" if where is not None else ""),
        found="\n".join([f"{len(files)} files, no samples", *source.notes()]),
        expected="one sample at least",
        do="mend `path`, or put the samples there; docs/jobs/datasets.md says which files are taken"
        if where is not None
        else "mend the function, so that it gives samples",
    )


def _grown(
    catalogue: Catalogue | None, source: Source, files: pl.DataFrame, recorded: RowPlan, cut: int
) -> tuple[Growth, dict[str, list[int]]]:
    """Return how a source differs from its plan, and the rows of files that are gone and could never be read."""
    growth = grow(recorded, files, cut)
    # in ranges a file is no row by itself, and rows are not what is planned
    if catalogue is None or not growth.gone or source.by_ranges:
        return growth, {}
    withdrawn = never_read(catalogue, source.name, recorded, set(growth.gone))
    return grow(recorded, files, cut, withdrawn), withdrawn


def _told(source: Source, segment: Segment | None, num_withdrawn: int) -> Iterator[str]:
    """Yield what a user should know of rows that are gone, and of new ones that nobody has counted."""
    if num_withdrawn:
        yield f"the files of {num_withdrawn} rows that could never be read are gone; the rows stay unread"
    if source.by_ranges and segment is not None and segment.num_rows:  # else files were touched alone
        guessed = -(-segment.num_rows // source.measure_per_row())
        yield f"about {guessed:,} new rows; a text is counted when it is read"


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
