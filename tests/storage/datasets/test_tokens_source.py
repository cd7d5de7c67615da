"""Token ids in NumPy files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from storage.datasets import RawSample
from storage.datasets.tokens import CUT
from storage.errors import BadRequest, LabelOutOfRange, MissingSource
from storage.language.tokenizer import train_tokenizer

Make = Callable[..., Any]
ReadAll = Callable[..., list[RawSample]]


@pytest.fixture
def tokens(tmp_path: Path, source: Make) -> Make:
    """Return a prepared source over an array, 10 ids."""

    def make(array: Any, dtype: Any = np.uint16, **options: Any) -> Any:
        np.save(tmp_path / "t.npy", np.array(array, dtype))
        made = source(**({"kind": "tokens", "path": "t.npy", "vocabulary": 10} | options))
        return made.prepared(made.find_tokenizer(lambda name: None), {})

    return make


def pairs(samples: list[RawSample]) -> list[list[list[int]]]:
    return [sample.payload.tolist() for sample in samples]  # type: ignore[union-attr]


def test_a_stream_is_cut_into_blocks_whose_last_token_predicts_the_next_blocks_first(
    tokens: Make, read_all: ReadAll
) -> None:
    assert pairs(read_all(tokens([1, 2, 3, 4, 5], block=2))) == [
        [[1, 2], [2, 3]],
        [[3, 4], [4, 5]],
        [[5, 0], [-1, -1]],
    ]


def test_blocks_stay_as_they_are_and_their_last_token_predicts_nothing(tokens: Make, read_all: ReadAll) -> None:
    assert pairs(read_all(tokens([[1, 2], [3, 4]]))) == [[[1, 2], [2, -1]], [[3, 4], [4, -1]]]


def test_an_end_of_text_predicts_nothing(tokens: Make, read_all: ReadAll) -> None:
    assert pairs(read_all(tokens([1, 9, 3, 4], block=4, end_of_text=9))) == [[[1, 9, 3, 4], [9, -1, 4, -1]]]


def test_a_masked_token_is_not_predicted(tmp_path: Path, tokens: Make, read_all: ReadAll) -> None:
    np.save(tmp_path / "m.npy", np.array([True, False, True, False]))
    assert pairs(read_all(tokens([1, 2, 3, 4], block=2, mask="m.npy"))) == [[[1, 2], [-1, 3]], [[3, 4], [-1, -1]]]


def test_any_rows_can_be_read_alone(tokens: Make) -> None:
    source = tokens([1, 2, 3, 4, 5], block=2)
    assert [sample.sample_id for sample in source.read("t.npy", 1, 5)] == ["t.npy:1", "t.npy:2"]


@pytest.mark.parametrize("bad", [10, -1, 2**40])
def test_an_id_outside_the_vocabulary_is_refused_where_it_is(bad: int, tokens: Make, read_all: ReadAll) -> None:
    with pytest.raises(LabelOutOfRange) as error:
        read_all(tokens([[1, 2], [3, bad]], np.int64))
    assert (error.value.what, error.value.found) == (
        "block t.npy:1 holds a token outside the vocabulary",
        f"id {bad} at position 1",
    )


@pytest.mark.parametrize(
    ("array", "dtype", "options"),
    [
        ([0.5], np.float32, {"block": 2}),
        (3, np.int64, {"block": 2}),
        ([], np.int64, {"block": 2}),
        ([1, 2], np.int64, {}),
        ([[1, 2]], np.int64, {"block": 3}),
        ([[[1]]], np.int64, {"block": 1 + 1}),
    ],
)
def test_what_is_no_tokens_is_refused(array: Any, dtype: Any, options: Any, tokens: Make) -> None:
    with pytest.raises(MissingSource):
        tokens(array, dtype, **options).files()


def test_a_pickle_is_not_opened(tmp_path: Path, tokens: Make) -> None:
    source = tokens([1], block=2)
    np.save(tmp_path / "t.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(MissingSource, match="cannot read"):
        source.files()


def test_a_mask_of_another_shape_is_refused(tmp_path: Path, tokens: Make, read_all: ReadAll) -> None:
    np.save(tmp_path / "m.npy", np.ones(3, bool))
    with pytest.raises(MissingSource, match="is no mask"):
        read_all(tokens([1, 2], block=2, mask="m.npy"))


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path: Path, tokens: Make) -> None:
    (tmp_path / "t.json").write_bytes(train_tokenizer(["a"], 257, "<e>"))
    assert tokens([1], block=2, tokenizer="t.json", vocabulary=300).tokens().vocabulary == 300
    with pytest.raises(BadRequest, match="smaller vocabulary"):
        tokens([1], block=2, tokenizer="t.json", vocabulary=256)


def test_no_label_crosses_into_the_next_document(tmp_path: Path, tokens: Make, read_all: ReadAll) -> None:
    np.save(tmp_path / "d.npy", np.array([0, 2, 3], np.uint32))
    source = tokens([1, 2, 3, 4, 5, 6], block=4, documents="d.npy")
    assert pairs(read_all(source)) == [[[1, 2, 3, 4], [2, -1, -1, 5]], [[5, 6, 0, 0], [6, -1, -1, -1]]]
    assert source.longest_row() is None
    np.save(tmp_path / "d.npy", np.array([0, 4]))  # where a block ends too
    assert pairs(read_all(tokens([1, 2, 3, 4, 5], block=4, documents="d.npy")))[0] == [[1, 2, 3, 4], [2, 3, 4, -1]]


def test_a_document_may_be_a_row_at_its_own_length(tmp_path: Path, tokens: Make, read_all: ReadAll) -> None:
    np.save(tmp_path / "d.npy", np.array([0, 2, 3]))
    np.save(tmp_path / "m.npy", np.array([1, 1, 1, 0, 0, 1, 1, 1], np.bool_))
    source = tokens([1, 2, 3, 4, 5, 6, 7, 8], length=4, documents="d.npy", mask="m.npy")
    samples = read_all(source)
    rows = [(source.decode(s.payload).tolist(), source.decode_labels(s.payload).tolist()) for s in samples]
    assert rows == [([1, 2], [2, -1]), ([3], [-1]), ([4, 5, 6, 7], [-1, 6, 7, 8])]
    assert [source.num_items(sample.payload) for sample in samples] == [2, 1, 5]
    assert source.longest_row() == 4
    assert source.content()["length"] == 4


@pytest.mark.parametrize("starts", [[1, 2], [0, 3, 3], [0, 6], [[0, 1]], [0.0, 2.0], []])
def test_starts_that_are_none_are_refused(starts: Any, tmp_path: Path, tokens: Make) -> None:
    np.save(tmp_path / "d.npy", np.array(starts))
    with pytest.raises(MissingSource, match=r"d\.npy does not say where the documents of .*t\.npy begin"):
        tokens([1, 2, 3, 4, 5, 6], block=4, documents="d.npy").files()


def test_a_change_of_where_documents_begin_is_a_change_of_the_file(tmp_path: Path, tokens: Make) -> None:
    np.save(tmp_path / "d.npy", np.array([0, 2]))
    source = tokens([1, 2, 3, 4], block=4, documents="d.npy")
    before = source.look_at("t.npy")
    np.save(tmp_path / "d.npy", np.array([0, 2, 3]))
    assert source.look_at("t.npy") != before


def test_a_length_goes_with_documents(tokens: Make) -> None:
    with pytest.raises(ValidationError, match="it goes with `documents`"):
        tokens([1, 2, 3, 4], length=4)


def test_whole_documents_share_a_row_and_each_is_marked(tmp_path: Path, tokens: Make, read_all: ReadAll) -> None:
    np.save(tmp_path / "starts.npy", np.array([0, 3, 4, 9]))
    source = tokens([1, 2, 3, 4, 5, 6, 7, 8, 9, 0], documents="starts.npy", length=4, pack=True)
    samples = read_all(source)
    assert [sample.sample_id for sample in samples] == ["t.npy:0+1", "t.npy:2", "t.npy:3"]
    assert pairs(samples) == [
        [[-3, 2, 3, -6], [2, 3, -1, -1]],
        [[-7, 6, 7, 8], [6, 7, 8, 9]],  # of a document that is cut, the next token is known
        [[-2], [-1]],
    ]
    assert [sample.remarks for sample in samples] == [(), (CUT,), ()]
    (second,) = source.read("t.npy", 1, 1)
    assert second.sample_id == "t.npy:2"
    assert (source.packs, source.content()["pack"]) == (True, True)


def test_documents_are_packed_only_where_they_are_known(tokens: Make) -> None:
    with pytest.raises(ValidationError, match="goes with `documents` and `length`"):
        tokens([1, 2, 3, 4], block=2, pack=True)
