"""The rows of a shard as they are decoded, one after another: arrays, columns of the sample table, and what is told.

Shapes: S rows of a shard, `sites` the axes of a row's sites (storage.tasks).
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import numpy as np
import pyarrow as pa

from storage.datasets import RawSample, Source, Unreadable, check_label
from storage.errors import BadRequest
from storage.format.specs import DatasetSpec
from storage.inputs import Stored, inputs_of
from storage.inputs.encoded import DECODED, Encoded
from storage.inputs.ragged import Ragged
from storage.tasks import task_of
from storage.tasks.base import TARGET

# Columns of rows of their own length: the items that are stored of a row, and those that were cut off.
LENGTH, CUT = "length", "cut"
NOTHING = RawSample("", Unreadable("nothing"), None)


class DecodedRows:
    """S rows of a dataset, each of them blank until its sample is taken, and for good where that is unreadable.

    Args:
        source: of the samples.
        spec: what is promised of them.
        num_rows: S.
        version: format of the cache that they are for, which says what is digested of each.

    Attributes:
        remarks: what is to be told of the samples, and how often.
    """

    def __init__(self, source: Source, spec: DatasetSpec, num_rows: int, version: int):
        self._source, self._spec, self._version = source, spec, version
        self._kind, self._task = inputs_of(spec), task_of(spec)
        self._inputs_S = self._kind.blank_rows(num_rows, spec.input_shape, spec.input_dtype)
        self._label_arrays = self._task.blank_labels(num_rows, spec.input_shape, self._kind)  # by name, (S, *sites)
        self._cut_S = np.zeros(num_rows, np.int32)
        self._pictures_S = np.zeros(num_rows, np.uint64)  # of encoded rows alone: digests of the decoded ones
        self._ids: list[str] = []
        self._classes: list[int | None] = []
        self._targets: list[tuple[float, ...] | None] = []
        self._digests: list[dict[str, str]] = []
        self._errors: list[str | None] = []
        self.remarks: Counter[str] = Counter()

    def take(self, i: int, sample: RawSample) -> None:
        """Take the sample of row `i`, the next one; an unreadable one leaves its reason.

        Raises:
            LabelOutOfRange: its label is none of the classes: that is no bad sample, the job is wrong.
        """
        check_label(sample.label, self._spec.classes, sample.sample_id, self._source.class_names)
        error = None
        try:
            self._decode(i, _payload(sample))
        except Unreadable as reason:
            error = str(reason)
        self._ids.append(sample.sample_id)
        self._classes.append(sample.label)
        self._targets.append(sample.target)
        self._digests.append(sample.digests(self._version))
        self._errors.append(error)
        self.remarks.update(sample.remarks)

    def check_ids(self) -> None:
        """Raise BadRequest if two of the samples have one id.

        Across shards the build looks, once all are there: a worker sees no other.
        """
        ids = self._ids
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise BadRequest(
                f"dataset {self._source.name} gives one id to several samples",
                found=twice,
                expected="a permanent id for each sample",
            )

    def arrays(self) -> dict[str, Stored]:
        """Return the arrays of the shard, (S, …) each."""
        return {
            "inputs": self._stored,
            **({DECODED: self._pictures_S} if self._spec.encoded else {}),
            **{name: self._kind.stored(labels, "int32") for name, labels in self._label_arrays.items()},
        }

    def columns(self) -> dict[str, pa.Array]:
        """Return the columns of the commit, a value of each of the S rows."""
        found = {"sample_id": pa.array(self._ids, pa.string()), "label": pa.array(self._classes, pa.int64())}
        if self._task.numbers:
            found[TARGET] = pa.array(self._targets, pa.list_(pa.float32(), self._task.num_classes(self._spec)))
        found["split"] = pa.array([self._source.split_of(name) for name in self._ids], pa.string())
        for name in NOTHING.digests(self._version):
            found[name] = pa.array([digests[name] for digests in self._digests], pa.string())
        found["error"] = pa.array(self._errors, pa.string())
        if isinstance(self._stored, Ragged):
            found |= {LENGTH: pa.array(self._stored.lengths, pa.int32()), CUT: pa.array(self._cut_S)}
        return found

    @cached_property
    def _stored(self) -> Stored:
        return self._kind.stored(self._inputs_S, self._spec.input_dtype)

    def _decode(self, i: int, payload: bytes | np.ndarray) -> None:
        """Decode inputs and labels of row `i`. Raises Unreadable."""
        self._inputs_S[i], self._pictures_S[i] = _decode_one(self._source, self._spec, payload)
        if self._kind.own_length:
            self._cut_S[i] = self._source.num_items(payload) - len(self._inputs_S[i])
        for labels in self._label_arrays.values():
            labels[i] = self._source.decode_labels(payload)
            assert len(labels[i]) == len(self._inputs_S[i])  # a label of each item


def _payload(sample: RawSample) -> bytes | np.ndarray:
    if isinstance(sample.payload, Unreadable):
        raise sample.payload
    return sample.payload


def _decode_one(source: Source, spec: DatasetSpec, payload: bytes | np.ndarray) -> tuple[np.ndarray, int]:
    """Return what is stored of a sample, and of an encoded one the digest of its picture. Raises Unreadable."""
    kind, picture = inputs_of(spec), 0
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
