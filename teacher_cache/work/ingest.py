"""Ingest one shard: raw samples decoded to model-ready inputs, with a row of the sample table for each.

Shapes: S rows of a shard.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache as kept

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from storage.cache import Cache
from storage.datasets import AnySource, RawSample, Source
from storage.digests import fingerprint
from storage.errors import BadRequest, MissingSource
from storage.format.rows import Extent
from storage.format.specs import FORMAT_VERSION, DatasetSpec
from storage.inputs import Stored
from storage.inputs.encoded import decoders
from storage.inputs.packed import count_documents
from storage.inputs.ragged import digest_rows
from storage.tasks.base import MOST_COUNTED
from teacher_cache.work.decoded import CUT, DecodedRows
from teacher_cache.work.pieces import LOCK, Done, IngestWork, commit_shard, provenance
from teacher_cache.work.telling import rows_done


def ingest_shard(work: IngestWork) -> Done:
    """Decode the samples of one shard to model-ready inputs and commit them.

    Raises:
        LabelOutOfRange: a label is none of the classes.
        MissingSource: the source holds fewer samples than planned.
    """
    cache, (start, stop) = Cache.open(work.cache), work.rows
    spec, tokenizer = cache.dataset(work.key.dataset), cache.tokenizer(work.key.dataset)
    options: Source = _sources().validate_json(work.source)
    if any(not _is_at_hand(options, extent) for extent in work.extents):  # on another machine than the build's
        options.fetched()
    # The tokenizer of the cache, not of the job: one that was learned is learned once.
    source = options.as_promised(spec.source).prepared(None if tokenizer is None else tokenizer.data, {})
    with LOCK:  # decoding computes too: two shards at once would only wait for each other's processor
        began = time.monotonic()
        arrays, columns, remarks = decode_rows(source, spec, work.extents, cache.spec.format)
        seconds = time.monotonic() - began
    num_rows = len(columns["error"])
    table = pa.table({"row": pa.array(range(start, start + num_rows), pa.int64()), **columns})
    quarantined = num_rows - table["error"].null_count
    about = provenance(seconds) | {"quarantined": quarantined, "inputs_digest": digest_rows(arrays["inputs"])}
    if source.by_ranges:
        about["range_digest"] = digest_extents(source, work.extents)
        if num_rows > stop - start:  # they would have the numbers of other shards' rows
            raise BadRequest(
                f"dataset {source.name} makes more rows than there are bytes of text",
                found=f"{num_rows} rows of {stop - start} bytes in {work.key}",
                do="a larger block",
            )
    if spec.encoded:
        about["libraries"] = decoders()
    about |= _count_labels(table, len(spec.classes)) | ({"remarks": dict(remarks)} if remarks else {})
    rows = (start, start + num_rows)
    done = commit_shard(cache, work.key, rows, arrays=arrays, table=table, about=about, quarantined=quarantined)
    cut = 0 if CUT not in columns else int(np.count_nonzero(columns[CUT]))
    packed = count_documents(arrays["inputs"]) if spec.packed else (0, 0)
    return done._replace(cut=cut, remarks=tuple(remarks.items()), packed=packed)


def _is_at_hand(source: Source, extent: Extent) -> bool:
    """Return whether a file is there as it was when its rows were planned."""
    try:
        return source.look_at(extent.file) == (extent.size, extent.version)
    except MissingSource:
        return False


@kept
def _sources() -> TypeAdapter[AnySource]:
    return TypeAdapter(AnySource)  # once: it takes as long to make as a small shard


def _count_labels(table: pa.Table, num_classes: int) -> dict[str, list[int]]:
    """Return how many readable rows there are of each class, if there are classes and not too many to count."""
    if not 0 < num_classes <= MOST_COUNTED:
        return {}
    readable = table.filter(pc.is_null(table["error"]))["label"].drop_null().to_numpy()
    return {"labels": np.bincount(readable, minlength=num_classes).tolist()}


def decode_rows(
    source: Source, spec: DatasetSpec, extents: Sequence[Extent], version: int = FORMAT_VERSION
) -> tuple[dict[str, Stored], dict[str, pa.Array], Counter[str]]:
    """Return arrays, (S, …) each, and the columns of a commit in a cache of some format, for all rows of some extents.

    The third is what is to be told of the samples, and how often.

    An unreadable sample leaves its reason, zeros as inputs or none at all, and no label at any site.

    Raises:
        BadRequest: two of the samples have one id.
        LabelOutOfRange, MissingSource: as of `ingest_shard`.
    """
    samples: Iterable[RawSample] = _samples(source, extents)
    if source.by_ranges:
        samples = list(source.rows_of(samples))  # which tells how many there are
        num_rows = len(samples)
    else:
        num_rows = sum(extent.rows for extent in extents)
    decoded = DecodedRows(source, spec, num_rows, version)
    for i, sample in enumerate(samples):
        rows_done(i)
        decoded.take(i, sample)
    decoded.check_ids()
    return decoded.arrays(), decoded.columns(), decoded.remarks


def _samples(source: Source, extents: Sequence[Extent]) -> Iterator[RawSample]:
    for extent in extents:
        count = 0
        source.check_unchanged(extent.file, extent.size, extent.version)
        for sample in read_extent(source, extent):
            count += 1
            yield sample
        source.check_unchanged(extent.file, extent.size, extent.version)
        if count != extent.rows and not source.by_ranges:  # rows behind it would get the samples of others
            raise MissingSource(
                f"{extent.file} of dataset {source.name} changed during the build",
                found=f"{count} samples from position {extent.position}",
                expected=f"{extent.rows}",
            )


def read_extent(source: Source, extent: Extent) -> Iterator[RawSample]:
    """Yield the samples of an extent, in order."""
    if source.by_ranges:
        stop = extent.position + extent.rows
        return source.read_range(extent.file, extent.position, stop, last=extent.last)
    return source.read(extent.file, extent.position, extent.rows)


def digest_extents(source: Source, extents: Sequence[Extent], *, open_ended: bool = False) -> str:
    """Return the digest of what some ranges hold, without making samples of it.

    Args:
        source: of them.
        extents: they.
        open_ended: without the line ends that have been written since behind the last lines of files.
    """
    digests = []
    for file, start, stop, last in ((e.file, e.position, e.position + e.rows, e.last) for e in extents):
        ended = source.open_end_digest(file, start, stop) if open_ended and last else None
        digests.append(source.range_digest(file, start, stop) if ended is None else ended)
    return fingerprint(digests)
