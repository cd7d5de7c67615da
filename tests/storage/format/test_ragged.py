"""Rows of their own length: written flat, read back as rows, and never as anything but what was written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import CorruptObject, UnsupportedFormat
from storage.format import committing
from storage.format.committing import read_arrays, read_ragged, write_shard
from storage.format.objects import LocalObjects
from storage.format.shards import Belonging, Commit, ShardKey
from storage.format.specs import DatasetSpec, read_spec, write_spec
from storage.inputs.ragged import Ragged, digest_rows
from storage.views import view_fingerprint

KEY = ShardKey("texts", None, "plain", 0)
ROWS = [[7, 8], [], [9], [1, 2, 3, 4]]
LENGTHS = st.lists(st.integers(0, 5), max_size=6)


def write(objects: LocalObjects, **arrays: Any) -> Commit:
    count = len(next(iter(arrays.values())))
    table = pa.table({"row": pa.array(range(count), pa.int64())})
    belonging = Belonging("c", "d", None)
    commit = write_shard(objects, KEY, rows=(0, count), arrays=arrays, table=table, about={}, belonging=belonging)
    assert commit is not None
    return commit


def of_lengths(lengths: list[int]) -> Ragged:
    return Ragged.of([np.arange(length) + 10 * row for row, length in enumerate(lengths)], np.int32)


@given(LENGTHS)
def test_rows_of_their_own_length_read_back(tmp_path_factory: pytest.TempPathFactory, lengths: list[int]) -> None:
    objects, rows = LocalObjects(tmp_path_factory.mktemp("cache")), of_lengths(lengths)
    back = read_ragged(objects, write(objects, inputs=rows), ["inputs"])["inputs"]
    assert [row.tolist() for row in back] == [row.tolist() for row in rows]
    assert (back.flat_T.dtype, back.offsets.dtype) == (np.int32, np.int64)


def test_items_may_have_axes_of_their_own(objects: LocalObjects) -> None:
    rows = Ragged.of([np.ones((2, 3)), np.zeros((0, 3)), np.full((1, 3), 2)], np.float32)
    back = read_ragged(objects, write(objects, inputs=rows), ["inputs"])["inputs"]
    assert [row.tolist() for row in back] == [row.tolist() for row in rows]


def test_nothing_is_stored_to_fill_rows_up(objects: LocalObjects) -> None:
    commit = write(objects, inputs=Ragged.of(ROWS, np.uint8))
    assert [member.size_bytes for member in commit.members if member.path == "inputs/c/0"] == [7]


def test_a_commit_says_that_rows_have_their_own_length(objects: LocalObjects) -> None:
    ragged, alike = (
        write(objects, inputs=Ragged.of(ROWS, np.uint8)),
        write(LocalObjects(objects.root / "b"), x=np.ones(2)),
    )
    assert (ragged.uses, alike.uses) == (("own_length",), ())


def test_a_cache_of_format_2_cannot_hold_them(objects: LocalObjects) -> None:
    table = pa.table({"row": pa.array(range(4), pa.int64())})
    rows = {"inputs": Ragged.of(ROWS, np.uint8)}
    with pytest.raises(ValueError, match="a cache of format 2 cannot hold own_length"):
        write_shard(objects, KEY, rows=(0, 4), arrays=rows, table=table, about={}, belonging=None)


def test_the_offsets_of_an_array_are_no_array_of_their_own(objects: LocalObjects) -> None:
    commit = write(objects, inputs=Ragged.of(ROWS, np.int32), alike=np.zeros((4, 2)))
    assert commit.array_names == ["alike", "inputs"]


def test_rows_alike_and_rows_of_their_own_length_lie_side_by_side(objects: LocalObjects) -> None:
    commit = write(objects, inputs=Ragged.of(ROWS, np.int32), alike=np.zeros((4, 2)))
    assert read_arrays(objects, commit, ["alike"])["alike"].shape == (4, 2)


@pytest.mark.parametrize("rows", [np.zeros((4, 2), np.int32), Ragged.of(ROWS, np.int32)], ids=["alike", "ragged"])
def test_neither_is_taken_for_the_other(objects: LocalObjects, rows: Any) -> None:
    commit = write(objects, inputs=rows)
    with pytest.raises(CorruptObject, match="is not of this dataset"):
        (read_arrays if isinstance(rows, Ragged) else read_ragged)(objects, commit, ["inputs"])


def test_another_number_of_rows_than_the_shard_has_is_not_written(objects: LocalObjects) -> None:
    with pytest.raises(ValueError, match="has shape"):
        write(objects, alike=np.zeros((3, 1)), inputs=Ragged.of(ROWS, np.int32))


HOSTILE = {
    "descending": [0, 3, 2, 7, 7],
    "negative": [0, -1, 2, 3, 7],
    "beyond the end": [0, 2, 9, 9, 7],
    "not from 0": [1, 2, 2, 3, 7],
    "not to the end": [0, 2, 2, 3, 6],
    "past the end": [0, 2, 2, 3, 8],
    "a row too few": [0, 2, 3, 7],
    "a row too many": [0, 2, 2, 2, 3, 7],
    "none": [],
    "huge": [0, 2**62, -(2**62), 3, 7],
}


@pytest.mark.parametrize("offsets", HOSTILE.values(), ids=HOSTILE)
def test_offsets_that_cannot_be_are_refused(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch, offsets: list[int]
) -> None:
    flat_T = np.arange(7, dtype=np.int32)
    forged = {"inputs": flat_T, "offsets/inputs": np.array(offsets, np.int64)}
    with monkeypatch.context() as patch:
        patch.setattr(committing, "split_offsets", lambda arrays: forged)
        commit = write(objects, inputs=Ragged.of(ROWS, np.int32))
    with pytest.raises(CorruptObject):
        read_ragged(objects, commit, ["inputs"])


@pytest.mark.parametrize("offsets", [np.zeros((5, 1), np.int64), np.array([0, 2, 2, 3, 7], np.int32), np.zeros(5)])
def test_offsets_of_another_type_are_refused(offsets: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not int64"):
        Ragged(np.arange(7), offsets)


@given(LENGTHS, st.data())
def test_taking_rows_is_taking_each(lengths: list[int], data: st.DataObject) -> None:
    rows = of_lengths(lengths)
    chosen = data.draw(st.lists(st.integers(0, max(0, len(rows) - 1)), max_size=8)) if len(rows) else []
    taken = rows.take(np.array(chosen, np.int64))
    assert [row.tolist() for row in taken] == [rows[row].tolist() for row in chosen]


def test_a_mask_takes_the_rows_that_it_has() -> None:
    taken = Ragged.of(ROWS, np.int32).take(np.array([True, False, False, True]))
    assert [row.tolist() for row in taken] == [[7, 8], [1, 2, 3, 4]]


def test_where_rows_part_is_part_of_what_they_are() -> None:
    one, two = Ragged.of([[1, 2], [3]], np.int32), Ragged.of([[1], [2, 3]], np.int32)
    assert (digest_rows(one) != digest_rows(two), view_fingerprint(one) != view_fingerprint(two)) == (True, True)


def test_a_view_is_known_by_its_first_rows() -> None:
    long = of_lengths([2] * 20)
    assert view_fingerprint(long) == view_fingerprint(long.take(np.arange(8)))


# --- what a reader must know


TEXTS = DatasetSpec(
    name="texts", source={}, classes=["a", "b"], input_shape=(16,), input_dtype="int32", uses=("own_length",)
)


def test_a_dataset_says_that_its_rows_have_their_own_length(objects: LocalObjects) -> None:
    write_spec(objects, "texts/dataset.json", TEXTS, "job.toml")
    assert json.loads(objects.get("texts/dataset.json"))["uses"] == ["own_length"]
    assert read_spec(objects, "texts/dataset.json", DatasetSpec).own_length


def test_a_promise_that_uses_nothing_new_is_what_it_was() -> None:
    plain = TEXTS.model_copy(update={"uses": ()})
    assert ("uses" in plain.model_dump(mode="json"), plain.own_length) == (False, False)


def test_what_this_version_cannot_read_is_refused_by_name(objects: LocalObjects) -> None:
    later = TEXTS.model_copy(update={"uses": ("own_length", "of_a_later_version")})
    objects.put("texts/dataset.json", later.to_json())
    with pytest.raises(UnsupportedFormat) as caught:
        read_spec(objects, "texts/dataset.json", DatasetSpec)
    assert (caught.value.what, caught.value.found, caught.value.do) == (
        f"{objects.url}/texts/dataset.json uses what this version cannot read",
        "of_a_later_version",
        "upgrade stillroom; FORMAT.md says what each of these names is",
    )
