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
from storage.datasets import AnySource, RawSample, Source, Unreadable, check_label
from storage.digests import fingerprint
from storage.errors import BadRequest, MissingSource
from storage.format.rows import Extent
from storage.format.specs import FORMAT_VERSION, DatasetSpec
from storage.inputs import Stored, inputs_of
from storage.inputs.encoded import DECODED, Encoded, decoders
from storage.inputs.packed import count_documents
from storage.inputs.ragged import Ragged, digest_rows
from storage.tasks import task_of
from storage.tasks.base import MOST_COUNTED, TARGET
from teacher_cache.work.pieces import LOCK, Done, IngestWork, commit_shard, provenance
from teacher_cache.work.telling import rows_done

# Columns of rows of their own length: the items that are stored of a row, and those that were cut off.
LENGTH, CUT = "length", "cut"
NOTHING = RawSample("", Unreadable("nothing"), None)


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
    kind = inputs_of(spec)
    samples: Iterable[RawSample] = _samples(source, extents)
    if source.by_ranges:
        samples = list(source.rows_of(samples))  # which tells how many there are
        num_rows = len(samples)
    else:
        num_rows = sum(extent.rows for extent in extents)
    inputs_S = kind.blank_rows(num_rows, spec.input_shape, spec.input_dtype)
    task = task_of(spec)
    label_arrays = task.blank_labels(num_rows, spec.input_shape, kind)
    cut = np.zeros(num_rows, np.int32)
    decoded_S = np.zeros(num_rows, np.uint64)  # of encoded rows alone
    ids: list[str] = []
    classes: list[int | None] = []
    targets: list[tuple[float, ...] | None] = []
    digests: list[dict[str, str]] = []
    errors: list[str | None] = []
    remarks: Counter[str] = Counter()
    for i, sample in enumerate(samples):
        rows_done(i)
        check_label(
            sample.label, spec.classes, sample.sample_id, source.class_names
        )  # a wrong label is no bad sample: the job is wrong
        error = None
        try:
            inputs_S[i], decoded_S[i] = _decode_one(source, spec, sample)
            cut[i] = source.num_items(_payload(sample)) - len(inputs_S[i]) if kind.own_length else 0
            for labels in label_arrays.values():
                labels[i] = source.decode_labels(_payload(sample))
                assert len(labels[i]) == len(inputs_S[i])  # a label of each item
        except Unreadable as reason:
            error = str(reason)
        ids.append(sample.sample_id)
        classes.append(sample.label)
        targets.append(sample.target)
        digests.append(sample.digests(version))
        errors.append(error)
        remarks.update(sample.remarks)
    # Within a shard here; across shards the build looks, once all are there: a worker sees no other.
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise BadRequest(
            f"dataset {source.name} gives one id to several samples",
            found=twice,
            expected="a permanent id for each sample",
        )
    stored = kind.stored(inputs_S, spec.input_dtype)
    of_length = {LENGTH: pa.array(stored.lengths, pa.int32()), CUT: pa.array(cut)} if isinstance(stored, Ragged) else {}
    return (
        {
            "inputs": stored,
            **({DECODED: decoded_S} if spec.encoded else {}),
            **{name: kind.stored(labels, "int32") for name, labels in label_arrays.items()},
        },
        {
            "sample_id": pa.array(ids, pa.string()),
            "label": pa.array(classes, pa.int64()),
            **({TARGET: pa.array(targets, pa.list_(pa.float32(), task.num_classes(spec)))} if task.numbers else {}),
            "split": pa.array([source.split_of(name) for name in ids], pa.string()),
            **{name: pa.array([said[name] for said in digests], pa.string()) for name in NOTHING.digests(version)},
            "error": pa.array(errors, pa.string()),
            **of_length,
        },
        remarks,
    )


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


def _payload(sample: RawSample) -> bytes | np.ndarray:
    if isinstance(sample.payload, Unreadable):
        raise sample.payload
    return sample.payload


def _decode_one(source: Source, spec: DatasetSpec, sample: RawSample) -> tuple[np.ndarray, int]:
    """Return what is stored of a sample, and of an encoded one the digest of its picture. Raises Unreadable."""
    kind, payload, picture = inputs_of(spec), _payload(sample), 0
    if isinstance(kind, Encoded):
        assert isinstance(payload, bytes)
        stored, picture, array = kind.keep(payload)
    else:
        stored = array = source.decode(payload)
    if not kind.fits(array.shape, spec.input_shape) or array.dtype != spec.input_dtype:
        raise Unreadable(
            f"is {array.dtype} {array.shape}, the dataset is {spec.input_dtype} {spec.input_shape}" + kind.misfit_help
        )
    # One NaN is a NaN for its whole batch, in a student with batch norm.
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Unreadable("holds NaN or infinity")
    return stored, picture
