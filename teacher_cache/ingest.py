"""Ingest one shard: raw samples decoded to model-ready inputs, with a row of the sample table for each.

Shapes: S rows of a shard.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from storage.cache import Cache
from storage.datasets import AnySource, RawSample, Source, Unreadable, check_label
from storage.digests import digest
from storage.errors import BadRequest, MissingSource
from storage.spec import DatasetSpec
from teacher_cache.tasks import LOCK, Done, Task, commit_shard, provenance


def ingest_shard(task: Task) -> Done:
    """Decode the samples of one shard to model-ready inputs and commit them.

    Raises:
        LabelOutOfRange: a label is none of the classes.
        MissingSource: the source holds fewer samples than planned.
    """
    cache = Cache.open(task.cache)
    source: Source = TypeAdapter(AnySource).validate_json(task.options)
    spec = cache.dataset(task.key.dataset)
    with LOCK:
        began = time.monotonic()
        inputs_S, columns = _decode(source, spec, task)
        seconds = time.monotonic() - began
    table = pa.table({"row": pa.array(range(task.start, task.stop), pa.int64()), **columns})
    quarantined = task.stop - task.start - table["error"].null_count
    about = provenance(seconds) | {"quarantined": quarantined, "inputs_digest": digest(inputs_S.data.cast("B"))}
    return commit_shard(cache, task, {"inputs": inputs_S}, table, about, quarantined)


def _decode(source: Source, spec: DatasetSpec, task: Task) -> tuple[np.ndarray, dict[str, pa.Array]]:
    """Return inputs (S, …) and the columns of the commit; an unreadable sample leaves zeros and its reason."""
    inputs_S = np.zeros((task.stop - task.start, *spec.input_shape), dtype=spec.input_dtype)
    ids: list[str] = []
    labels: list[int | None] = []
    digests: list[str] = []
    errors: list[str | None] = []
    for i, sample in enumerate(_samples(source, task)):
        check_label(sample.label, spec.classes, sample.sample_id)
        error = None
        try:
            inputs_S[i] = _decode_one(source, spec, sample)
        except Unreadable as reason:
            error = str(reason)
        ids.append(sample.sample_id)
        labels.append(sample.label)
        digests.append(sample.digest)
        errors.append(error)
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise BadRequest(f"{task.key}: two samples have one id", found=twice, expected="a permanent id for each sample")
    return inputs_S, {
        "sample_id": pa.array(ids, pa.string()),
        "label": pa.array(labels, pa.int64()),
        "split": pa.array([source.split(name) for name in ids], pa.string()),
        "digest": pa.array(digests, pa.string()),
        "error": pa.array(errors, pa.string()),
    }


def _samples(source: Source, task: Task) -> Iterator[RawSample]:
    for extent in task.extents:
        count = 0
        for sample in source.read(*extent):
            count += 1
            yield sample
        if count != extent.rows:
            raise MissingSource(
                f"{extent.file} of dataset {source.name} changed during the build",
                found=f"{count} samples from position {extent.position}",
                expected=f"{extent.rows}",
            )


def _decode_one(source: Source, spec: DatasetSpec, sample: RawSample) -> np.ndarray:
    if isinstance(sample.payload, Unreadable):
        raise sample.payload
    array = source.decode(sample.payload)
    if array.shape != spec.input_shape or array.dtype != spec.input_dtype:
        raise Unreadable(
            f"is {array.dtype} {array.shape}, the dataset is {spec.input_dtype} {spec.input_shape}"
            + ("; set `size` to resize" if spec.input_dtype == "uint8" and array.ndim == 3 else "")
        )
    if array.dtype != np.uint8 and not np.isfinite(array).all():
        raise Unreadable("holds NaN or infinity")
    return array
