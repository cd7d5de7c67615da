"""The one check of a shard: what `dataset.json` and `teacher.json` promise of its commit, its arrays and their values.

Whoever reads a shard, to verify it as to train on it, goes through here: what `cache verify` calls whole, no reader
refuses. A digest tells nothing of this: a commit may have been written, or sealed again, by anybody.

S rows of a shard, T items of all its rows together where each has a length of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.encodings.base import all_finite
from storage.errors import CorruptObject
from storage.format.arrays import METADATA, MOST_METADATA_BYTES
from storage.format.shards import Commit
from storage.format.specs import LABELLED_POSITIONS, OWN_LENGTH, DatasetSpec, TeacherSpec
from storage.inputs import inputs_of
from storage.inputs.encoded import DECODED, MOST_PICTURE_BYTES
from storage.inputs.ragged import OFFSETS, Ragged, digest_rows
from storage.tasks import NO_LABEL, task_of
from storage.tasks.base import LABELLED, TARGET, count_labelled
from storage.views import PLAIN

INPUTS = "inputs"
FEATURE = "feature/"
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "uint16"}
MOST_AMOUNT = 2.0**64  # seconds, or nats of a shard's sites
MOST_SQUARES = 2.0**320  # of what numbers of a shard are off by, float32 each; a float has room for those of all shards
MOST_ARRAY_BYTES = 2**34  # of one array of a shard; nobody could hold a larger one, and a forged shape may say anything
# Of an array whose shape nothing promises: this much, or what zstd makes of a layer that is dead in every row.
UNPROMISED_BYTES, MOST_SHRUNK = 2**28, 1000
ZIP_BYTES = 2**10  # of what a zip says of each member, twice its path among it
SPLITS = ("train", "validation")
INTEGER, TEXT, NUMBER = pa.types.is_integer, pa.types.is_string, pa.types.is_floating
COLUMNS = {
    "ingest": {"sample_id": TEXT, "label": INTEGER, "split": TEXT, "error": TEXT},
    "targets": {
        "top": INTEGER,
        **dict.fromkeys(("top_probability", "entropy", "label_log_probability"), NUMBER),
    },
}


class ArrayPromise(NamedTuple):
    """What is promised of an array.

    Attributes:
        dtype: its type.
        row_shape: the shape of one row, the longest where each has a length of its own; None of a feature, of which
            only its teacher knows.
        own_length: whether each row has a length of its own.
    """

    dtype: str
    row_shape: tuple[int, ...] | None
    own_length: bool = False

    def most_bytes(self, rows: int) -> int:
        """Return how many bytes a shard's array may have as it is stored: what cannot be compressed grows a little."""
        if self.row_shape is None:
            return MOST_ARRAY_BYTES
        num_bytes = rows * prod(self.row_shape) * np.dtype(self.dtype).itemsize
        return num_bytes + num_bytes // 16 + 2**16

    def __str__(self) -> str:
        shape = "any shape" if self.row_shape is None else str(self.row_shape)
        return f"{self.dtype} {shape}" + ", each of a length of its own up to that" * self.own_length


@dataclass(frozen=True)
class ShardPromise:
    """What is promised of all shards of a dataset's ingest, or of a teacher's targets."""

    dataset: DatasetSpec
    teacher: TeacherSpec | None

    @cached_property
    def arrays(self) -> dict[str, ArrayPromise]:
        """Every array that a shard has, by name."""
        dataset, task = self.dataset, task_of(self.dataset)
        sites = task.sites(dataset.input_shape)
        if self.teacher is None:
            if dataset.encoded:
                return {INPUTS: ArrayPromise("uint8", (MOST_PICTURE_BYTES,), True), DECODED: ArrayPromise("uint64", ())}
            inputs = ArrayPromise(dataset.input_dtype, dataset.input_shape, dataset.own_length)
            label = (
                {} if task.label_array is None else {task.label_array: ArrayPromise("int32", sites, dataset.own_length)}
            )
            return {INPUTS: inputs, **label}
        soft = self.teacher.encoding.stored(self.teacher.num_classes)
        features = {FEATURE + name: PRECISIONS[spec.dtype] for name, spec in self.teacher.features.items()}
        flat = self.teacher.labelled_positions
        at = (prod(sites),) if flat else sites
        return {
            **{name: ArrayPromise(dtype, (*at, *shape), flat) for name, (dtype, shape) in soft.items()},
            **{name: ArrayPromise(dtype, None, flat) for name, dtype in features.items()},
        }

    def check_commit(self, commit: Commit) -> None:
        """Check what a commit says: its arrays, its counts, and its table, if that was read. Raises CorruptObject."""
        expected = sorted(self.arrays)
        if commit.array_names != expected:
            self._refuse(commit, "other arrays than are promised", commit.array_names, expected)
        paths = [member.path for member in commit.members]
        chunks = tuple(f"{name}/c/" for name in [*expected, *commit.offsets_names])
        strange = [path for path in paths if not path.endswith(METADATA) and not path.startswith(chunks)]
        if strange or len(set(paths)) != len(paths):
            self._refuse(commit, "other members than its arrays have", strange or "one of them twice", expected)
        if (fault := self._fault_of_sizes(commit)) is not None:
            self._refuse(commit, "more bytes than its arrays can have", fault, None)
        ragged = sorted(f"{OFFSETS}{name}" for name, promise in self.arrays.items() if promise.own_length)
        if commit.offsets_names != ragged or (OWN_LENGTH in commit.uses) != bool(ragged):
            found, wanted = [*commit.uses, *commit.offsets_names], [*[OWN_LENGTH] * bool(ragged), *ragged]
            self._refuse(commit, "other rows of their own length than are promised", found, wanted)
        at_labels = self.teacher is not None and self.teacher.labelled_positions
        if (LABELLED_POSITIONS in commit.uses) != at_labels:
            self._refuse(commit, "targets of other positions than are promised", commit.uses, [LABELLED_POSITIONS])
        if (fault := _fault_of_about(commit, self)) is not None:
            self._refuse(commit, "what it says of itself cannot be", fault, None)
        if commit.table.num_rows and (fault := self._fault_of_table(commit)) is not None:
            self._refuse(commit, "its table cannot be", fault, None)

    def check_layout(self, commit: Commit, name: str, shape: tuple[int, ...], dtype: str, stored_bytes: int) -> None:
        """Check the shape and type that an array says it has, before memory is taken for it. Raises CorruptObject."""
        rows = commit.stop - commit.start
        if name.startswith(OFFSETS):
            promise, fits = ArrayPromise("int64", ()), shape == (rows + 1,)
        else:
            promise = self.arrays[name]
            fits = _fits(promise, rows, shape, np.dtype(dtype).itemsize, stored_bytes)
        if dtype != promise.dtype or not fits:
            self._refuse(commit, f"{name} is not what is promised", f"{dtype} {shape}", f"{rows} rows of {promise}")

    def check_values(self, commit: Commit, arrays: Mapping[str, np.ndarray | Ragged]) -> None:
        """Check what digests cannot of some arrays: that every value can be. Raises CorruptObject."""
        for name, array_S in arrays.items():
            promise = self.arrays[name]
            if isinstance(array_S, Ragged) != promise.own_length:
                found = "rows of their own length" if isinstance(array_S, Ragged) else "rows that are all alike"
                self._refuse(commit, f"{name} is not what is promised", found, str(promise))
        fault = (
            self._fault_of_inputs(commit, arrays) if self.teacher is None else self._fault_of_targets(commit, arrays)
        )
        if fault is not None:
            self._refuse(commit, "its values cannot be", fault, None)

    def _refuse(self, commit: Commit, what: str, found: Any, expected: Any) -> None:
        name = self.dataset.name
        spec = f"{name}/dataset.json" if self.teacher is None else f"{name}/{self.teacher.name}/teacher.json"
        raise CorruptObject(
            f"{commit.key}: {what}",
            found=_listed(found),
            expected=None if expected is None else f"{_listed(expected)}  ({spec})",
            do="cache verify CACHE --repair, then cache build JOB.toml",
        )

    def _fault_of_sizes(self, commit: Commit) -> str | None:
        """Return which member of a group is larger than what is promised of its array, however it is compressed."""
        rows = commit.stop - commit.start
        for path, _, size_bytes, _ in commit.members:
            promise = self.arrays.get(path.partition("/c/")[0])
            most = MOST_ARRAY_BYTES if promise is None else promise.most_bytes(rows)
            if size_bytes > (MOST_METADATA_BYTES if path.endswith(METADATA) else most):
                return f"{path} of {size_bytes:,} bytes"
        inside = sum(member.size_bytes for member in commit.members)
        if commit.size_bytes > inside + ZIP_BYTES * (1 + len(commit.members)):
            return f"{commit.size_bytes:,} bytes, and {inside:,} of members"
        return None

    def _fault_of_table(self, commit: Commit) -> str | None:
        """Return what is wrong with a commit's table, or None."""
        table, of_ingest = commit.table, self.teacher is None
        columns = {"row": INTEGER, **COLUMNS["ingest" if of_ingest else "targets"]}
        if of_ingest and self.dataset.own_length:
            columns["length"] = INTEGER
        if of_ingest and task_of(self.dataset).numbers:
            columns[TARGET] = pa.types.is_fixed_size_list
        if self.teacher is not None and self.teacher.labelled_positions:
            columns[LABELLED] = INTEGER
        there = [name for name in columns if name in table.column_names]
        absent = [name for name in columns if name not in there and (commit.asked is None or name in commit.asked)]
        if wrong := absent + [name for name in there if not columns[name](table[name].type)]:
            return f"no column {wrong[0]!r} of its type"
        if not np.array_equal(table["row"].to_numpy(), np.arange(commit.start, commit.stop)):
            return f"its rows are not {commit.start} to {commit.stop}"
        for name in {"label", "top"} & set(there):
            if (fault := _fault_of_classes(table[name], self.dataset)) is not None:
                return fault
        if of_ingest:
            return self._fault_of_samples(commit, table, set(there))
        return _fault_of_numbers(table, [name for name in there if columns[name] is NUMBER])

    def _fault_of_samples(self, commit: Commit, table: pa.Table, there: set[str]) -> str | None:
        """Return what is wrong with those columns of an ingest that were read, or None."""
        splits = set(pc.unique(table["split"]).to_pylist()) if "split" in there else set()
        if not splits <= set(SPLITS):
            return f"splits {', '.join(sorted(map(repr, splits))[:5])}"
        if "error" not in there:
            return None
        readable = table.filter(pc.is_null(table["error"]))
        said, quarantined = commit.about.get("quarantined", 0), table.num_rows - readable.num_rows
        if said != quarantined:
            return f"quarantined = {said}, and {quarantined} rows have an error"
        ids = readable["sample_id"] if "sample_id" in there else None
        if ids is not None and (table["sample_id"].null_count or pc.count_distinct(ids).as_py() != len(ids)):
            return "rows without a sample_id of their own"
        if (labels := commit.about.get("labels")) is not None and "label" in there:
            counted = np.bincount(readable["label"].drop_null().to_numpy(), minlength=len(labels)).tolist()
            if labels != counted:
                return f"labels = {labels}, and the rows have {counted}"
        return _fault_of_targets(readable[TARGET], self.dataset) if TARGET in there else None

    def _fault_of_inputs(self, commit: Commit, arrays: Mapping[str, np.ndarray | Ragged]) -> str | None:
        """Return what is wrong with the arrays of an ingest, or None."""
        inputs_S = arrays.get(INPUTS)
        if inputs_S is not None:
            if (found := digest_rows(inputs_S)) != commit.about["inputs_digest"]:
                return f"inputs of digest {found}, and its commit says {commit.about['inputs_digest']}"
            if (fault := inputs_of(self.dataset).fault(inputs_S, self.dataset)) is not None:
                return fault
        for name, array_S in arrays.items():  # labels too: there is one of each item
            if isinstance(array_S, Ragged) and not _has_lengths(commit, array_S, "length"):
                return f"{name} with rows of other lengths than its commit says (column `length`)"
        if inputs_S is not None and any(_parted_otherwise(inputs_S, array_S) for array_S in arrays.values()):
            return "inputs with rows of other lengths than their labels"
        for name in arrays.keys() - {INPUTS, DECODED}:
            array_S, classes = arrays[name], task_of(self.dataset).num_classes(self.dataset)
            labels_S = array_S.flat_T if isinstance(array_S, Ragged) else array_S
            if labels_S.size and not NO_LABEL <= labels_S.min() <= labels_S.max() < classes:
                return f"{name} from {labels_S.min()} to {labels_S.max()}, of {classes} classes"
        return None

    def _fault_of_targets(self, commit: Commit, arrays: Mapping[str, np.ndarray | Ragged]) -> str | None:
        """Return what is wrong with the values of a teacher's arrays, or None."""
        assert self.teacher is not None
        for name, array_S in arrays.items():
            if isinstance(array_S, Ragged) and not _has_lengths(commit, array_S, LABELLED):
                return f"{name} of other numbers of positions than its commit says (column `{LABELLED}`)"
        stored = {name: array_S.flat_T if isinstance(array_S, Ragged) else array_S for name, array_S in arrays.items()}
        for name in [name for name in stored if name.startswith(FEATURE)]:
            if not all_finite(stored.pop(name), bf16=self.arrays[name].dtype == PRECISIONS["bf16"]):
                return f"{name} holds NaN or infinity"
        return self.teacher.encoding.fault(stored, self.teacher.num_classes, commit.uses)


def check_positions(commit: Commit, arrays: Mapping[str, np.ndarray | Ragged], labels_S: np.ndarray | Ragged) -> None:
    """Check that targets at labelled positions alone are of as many as the ingest's labels say. Raises CorruptObject.

    Args:
        commit: of the targets.
        arrays: some of them.
        labels_S: of all rows of the shard.
    """
    expected_S = count_labelled(labels_S)
    for name, array_S in arrays.items():
        if isinstance(array_S, Ragged) and not np.array_equal(array_S.lengths, expected_S):
            raise CorruptObject(
                f"{commit.key}: {name} is not of the labelled positions of its rows",
                found=f"{len(array_S.flat_T)} positions of {len(array_S)} rows",
                expected=f"{expected_S.sum()} of {len(expected_S)}, and of each row as many as `labels` says",
                do="cache verify CACHE --repair, then cache build JOB.toml",
            )


def _has_lengths(commit: Commit, rows_S: Ragged, column: str) -> bool:
    """Return whether rows are as long as a column of their commit says, if that was read."""
    table = commit.table
    if not table.num_rows or column not in table.column_names:
        return True
    return np.array_equal(rows_S.lengths, table[column].fill_null(0).to_numpy())  # null: of a quarantined row


def _parted_otherwise(inputs_S: np.ndarray | Ragged, others_S: np.ndarray | Ragged) -> bool:
    """Return whether the rows of one array are of other lengths than those of another."""
    if not isinstance(inputs_S, Ragged) or not isinstance(others_S, Ragged):
        return False
    return not np.array_equal(inputs_S.offsets, others_S.offsets)


def _listed(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value[:20])) or "none"


def _fits(promise: ArrayPromise, rows: int, shape: tuple[int, ...], item_bytes: int, stored_bytes: int) -> bool:
    """Return whether an array of this shape may be of a shard of so many rows, and is of a size that can be."""
    num_bytes = prod(shape) * item_bytes
    if num_bytes > MOST_ARRAY_BYTES:
        return False
    if promise.row_shape is None:
        has_rows = promise.own_length or shape[:1] == (rows,)
        return has_rows and num_bytes <= max(UNPROMISED_BYTES, MOST_SHRUNK * stored_bytes)
    if promise.own_length:
        longest, *rest = promise.row_shape
        return shape[1:] == tuple(rest) and 0 <= shape[0] <= rows * longest
    return shape == (rows, *promise.row_shape)


def _fault_of_about(commit: Commit, promise: ShardPromise) -> str | None:
    """Return what of a commit's provenance readers rely on, and cannot be so; or None."""
    about, rows = commit.about, commit.stop - commit.start
    needed = ["inputs_digest"]
    if promise.teacher is not None:
        needed += ["view_fingerprint", *(["views", "inputs_fingerprint"] if commit.key.view != PLAIN else [])]
    for name in needed:
        if not isinstance(about.get(name), str):
            return f"{name} = {about.get(name)!r}"
    if not 0 <= about.get("quarantined", 0) <= rows:
        return f"quarantined = {about['quarantined']} of {rows} rows"
    for name, can_be in (("seconds", _is_amount), ("finished", _is_text)):
        if name in about and not can_be(about[name]):
            return f"{name} = {about[name]!r}"[:200]
    if (labels := about.get("labels")) is not None:
        counts = isinstance(labels, list) and all(type(count) is int and count >= 0 for count in labels)
        if not counts or len(labels) != len(promise.dataset.classes) or sum(labels) > rows:
            return f"labels = {labels!r}"[:200]
    if (answered := about.get("answered")) is not None:
        sites = rows * prod(task_of(promise.dataset).sites(promise.dataset.input_shape))
        soft = promise.teacher is None or promise.teacher.encoding.soft
        most = MOST_SQUARES if task_of(promise.dataset).numbers else MOST_AMOUNT
        if not _can_be_answered(answered, sites, most, soft=soft):
            return f"answered = {answered!r} of {sites} sites"[:200]
    return None


def _can_be_answered(answered: Any, sites: int, most: float, *, soft: bool) -> bool:
    """Return whether a teacher can have answered so; of one of features alone, only labels are counted.

    `most` bounds its nats, or the squares that are in their place.
    """
    try:
        unsaid = {} if soft else {"correct": 0, "nats": 0.0}
        labelled, correct, nats = ((answered | unsaid)[name] for name in ("labelled", "correct", "nats"))
        never = answered.get("never") or 0
        whole = all(type(count) is int for count in (labelled, correct, never))
        return whole and 0 <= correct <= labelled <= sites and 0 <= never <= sites and _is_amount(nats, most)
    except (AttributeError, KeyError, TypeError):
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_amount(value: Any, most: float = MOST_AMOUNT) -> bool:
    """Return whether a value is a number of seconds or nats: no other type, not negative, infinite or NaN."""
    return type(value) in (int, float) and 0 <= value <= most


def _fault_of_classes(column: pa.ChunkedArray, dataset: DatasetSpec) -> str | None:
    """Return what is wrong with numbers of classes, null where there is none; or None."""
    lowest, highest = pc.min_max(column).as_py().values()
    classes = task_of(dataset).num_classes(dataset)
    if lowest is not None and not 0 <= lowest <= highest < classes:
        return f"classes {lowest} to {highest}, of {classes}"
    return None


def _fault_of_targets(column: pa.ChunkedArray, dataset: DatasetSpec) -> str | None:
    """Return what is wrong with the numbers that are labels, null where there are none; or None."""
    if column.type.list_size != task_of(dataset).num_classes(dataset) or not NUMBER(column.type.value_type):
        return f"{TARGET} of {column.type}"
    numbers = pc.list_flatten(column)
    return None if pc.all(pc.is_finite(numbers)).as_py() in (True, None) else f"{TARGET} that is no finite number"


def _fault_of_numbers(table: pa.Table, names: list[str]) -> str | None:
    """Return which columns hold what is no number, null where there is no value; or None."""
    bad = [name for name in names if pc.any(pc.is_nan(table[name])).as_py()]
    return f"NaN in {', '.join(bad)}" if bad else None
