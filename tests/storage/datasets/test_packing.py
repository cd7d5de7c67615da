"""Documents into blocks: small tables, worked by hand. 0 ends a document, −1 is no label."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.datasets.base import RawSample, Unreadable
from storage.datasets.packing import Document, fill_rows, pack, pack_rows


def packed(*documents: list[int] | Unreadable | Document, length: int = 4, split: bool = False, together: bool = True):
    made = [Document(np.array(d, np.int32)) if isinstance(d, list) else d for d in documents]
    blocks = pack(made, length, end_of_text=0, split=split, together=together)
    return blocks.inputs_SL.tolist(), blocks.labels_SL.tolist(), {i: str(why) for i, why in blocks.unreadable.items()}


def test_a_label_is_the_next_token_and_an_end_of_text_predicts_nothing() -> None:
    assert packed([5, 6, 7]) == ([[5, 6, 7, 0]], [[6, 7, 0, -1]], {})


def test_documents_share_a_block_and_no_label_crosses_their_boundary() -> None:
    assert packed([5], [6]) == ([[5, 0, 6, 0]], [[0, -1, 0, -1]], {})


def test_a_document_that_does_not_fit_begins_the_next_block() -> None:
    assert packed([5, 6], [7, 8]) == ([[5, 6, 0, 0], [7, 8, 0, 0]], [[6, 0, -1, -1], [8, 0, -1, -1]], {})


def test_a_split_document_runs_on_and_its_last_token_in_a_block_predicts_the_first_of_the_next() -> None:
    assert packed([1, 2, 3, 4, 5], split=True) == ([[1, 2, 3, 4], [5, 0, 0, 0]], [[2, 3, 4, 5], [0, -1, -1, -1]], {})


def test_documents_may_have_a_block_each() -> None:
    assert packed([5], [6], together=False)[0] == [[5, 0, 0, 0], [6, 0, 0, 0]]


def test_a_prompt_is_given_and_its_last_token_predicts_the_first_answer() -> None:
    assert packed(Document(np.array([1, 2, 3], np.int32), num_prompt=2))[1] == [[-1, 3, 0, -1]]


def test_an_empty_document_leaves_no_trace() -> None:
    assert packed([], [5], []) == packed([5])


def test_a_document_that_cannot_be_read_has_a_block_to_itself() -> None:
    inputs, labels, unreadable = packed([5], Unreadable("b"), [6])
    assert (inputs[::2], labels[1], unreadable) == ([[5, 0, 0, 0], [6, 0, 0, 0]], [-1] * 4, {1: "b"})


def test_no_documents_are_no_blocks() -> None:
    assert packed() == ([], [], {})


def test_what_is_to_be_told_of_a_document_is_told_of_the_block_it_begins_in() -> None:
    documents = [Document(np.array(ids, np.int32), remarks=told) for ids, told in (([5], ("a",)), ([6] * 4, ("b",)))]
    assert pack(documents, 4, end_of_text=0, split=True, together=True).remarks == {0: ("a", "b")}
    assert pack(documents, 4, end_of_text=0, split=True, together=False).remarks == {0: ("a",), 1: ("b",)}


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=12), st.booleans(), st.booleans(), st.integers(6, 9))
def test_every_token_is_there_once_in_order_and_predicted_by_the_one_before(
    documents: list[list[int]], split: bool, together: bool, length: int
) -> None:
    inputs, labels, _ = packed(*documents, length=length, split=split, together=together)
    flat_inputs, flat_labels = np.ravel(inputs).astype(int), np.ravel(labels).astype(int)
    assert flat_inputs[flat_inputs > 0].tolist() == [token for document in documents for token in document]
    counted = np.flatnonzero(flat_labels >= 0)
    assert len(counted) == sum(map(len, documents))  # each token predicts one, the last of a document its end
    assert flat_labels[counted].tolist() == flat_inputs[counted + 1].tolist()


@pytest.mark.parametrize("split", [False, True])
def test_blocks_are_int32(split: bool) -> None:
    blocks = pack([Document(np.array([1], np.int32))], 4, end_of_text=0, split=split, together=True)
    assert (blocks.inputs_SL.dtype, blocks.labels_SL.dtype) == (np.int32, np.int32)


@given(st.lists(st.integers(1, 9), max_size=60))
def test_each_document_is_in_one_row_and_no_row_is_too_long(sizes: list[int]) -> None:
    rows = fill_rows(sizes, 9)
    assert sorted(document for row in rows for document in row) == list(range(len(sizes)))
    assert all(sum(sizes[document] for document in row) <= 9 for row in rows)
    assert rows == sorted(sorted(row) for row in rows)
    # no two rows would have fitted into one
    free = sorted(sum(sizes[document] for document in row) for row in rows)
    assert sum(free[:2]) > 9 or len(rows) < 2


def document(name: str, ids: list[int]) -> RawSample:
    return RawSample(name, np.array([ids, [*ids[1:], -1]], np.int32), None, ("texts",))


def test_a_row_marks_where_documents_begin_and_names_them() -> None:
    unreadable = RawSample("a:7", Unreadable("why"), None)
    given_ = [document("a:0", [5, 6, 7]), document("a:3", [0, 8, 9]), unreadable, document("b:0", [1])]
    first, second, third = pack_rows(given_, 4)
    assert (first.sample_id, second.sample_id, third.sample_id) == ("a:0", "a:3+b:0", "a:7")
    assert first.payload.tolist() == [[-7, 6, 7], [6, 7, -1]]  # type: ignore[union-attr]
    assert second.payload.tolist() == [[-2, 8, 9, -3], [8, 9, -1, -1]]  # type: ignore[union-attr]
    assert third is unreadable
    assert second.remarks == ("texts", "texts")
