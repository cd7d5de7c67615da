"""Texts in ranges of bytes: whatever ranges meet, all of a text is read once; and how much is read at once."""

from __future__ import annotations

import io
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.datasets import Unreadable
from storage.datasets.text import tokenising
from storage.datasets.text.reading import cutting
from storage.datasets.text.reading.cutting import lines_between, next_cut, pieces_of, text_between
from storage.datasets.text.reading.ranges import Ranges, ranges_of, sample_texts
from storage.datasets.text.reading.rows import Columns, Row
from storage.datasets.text.tokenising import batches_of, in_pieces, spelled_in_pieces
from storage.errors import MissingSource
from storage.language.tokenizer import encoder, spelling, train_tokenizer

LEARNED = train_tokenizer(["to be or not to be"] * 9, 270, "<|endoftext|>")
TEXTS = st.text(alphabet="ab é猫🦆\n\r", max_size=80)
DOCUMENTS = Columns(("t",))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut long lines and pieces after a few bytes, so that small texts have them."""
    monkeypatch.setattr(cutting, "LINE_BYTES", 7)
    monkeypatch.setattr(cutting, "PIECE", 8)
    monkeypatch.setattr(tokenising, "PIECE", 8)


@given(text=TEXTS, in_lines=st.booleans(), at=st.integers(0, 200))
def test_a_cut_is_a_matter_of_the_file_alone(text: str, in_lines: bool, at: int) -> None:
    data = text.encode()
    file, size = io.BytesIO(data), len(data)
    at = min(at, size)
    cut = next_cut(file, at, size, in_lines=in_lines)
    assert at <= cut <= size
    # every point up to a cut leads to it, itself too, whoever asks
    assert {next_cut(file, each, size, in_lines=in_lines) for each in range(at, cut + 1)} == {cut}
    assert (data[:cut] + data[cut:]).decode() == data[:cut].decode() + data[cut:].decode()  # between characters
    if not in_lines and 0 < cut < size:
        assert data[cut - 1 : cut] == b"\n"


def test_a_long_line_is_cut_so_that_no_range_grows_with_it() -> None:
    file = io.BytesIO("é".encode() * 500)
    cuts = [next_cut(file, at, 1000, in_lines=True) for at in range(1, 900)]
    assert max(cut - at for at, cut in enumerate(cuts, start=1)) <= 7 + 1


@given(text=TEXTS, marks=st.lists(st.integers(0, 300), max_size=4))
def test_ranges_that_meet_hold_all_of_a_text_once(text: str, marks: list[int], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("texts") / "a.txt"
    path.write_bytes(text.encode())
    ranges = ranges_of(path, None)
    marks = sorted({0, *(min(mark, ranges.size) for mark in marks), ranges.size})
    pieces = [text_between(path, ranges.cut(start), ranges.cut(stop)) for start, stop in pairwise(marks)]
    assert "".join(piece for part in pieces for piece in part) == text


def write(path: Path, texts: list[str]) -> Ranges:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps({"t": text}) for text in texts))  # the last line has no end
    else:
        pq.write_table(pa.table({"t": texts, "other": ["x" * 100] * len(texts)}), path, row_group_size=7)
    return ranges_of(path, DOCUMENTS)


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_ranges_that_meet_hold_each_document_once(name: str, tmp_path: Path) -> None:
    texts = [f"{number}" * (number % 5 + 1) for number in range(40)]
    ranges = write(tmp_path / name, texts)
    for size in (1, 13, 100, ranges.size):
        marks = [*range(0, ranges.size, size), ranges.size]
        found = [row for a, b in pairwise(marks) for _, row in ranges.documents(ranges.cut(a), ranges.cut(b))]
        assert [row.texts for row in found if isinstance(row, Row)] == [(text,) for text in texts]


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_a_digest_is_of_what_a_range_holds(name: str, tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(20)]
    before, places = write(tmp_path / name, texts), [0, 300, 10**6]
    digests = [before.digest(before.cut(a), before.cut(b)) for a, b in pairwise(places)]
    texts[0] = "text x"
    after = write(tmp_path / name, texts)
    again = [after.digest(after.cut(a), after.cut(b)) for a, b in pairwise(places)]
    assert [one == other for one, other in zip(digests, again, strict=True)] == [False, True]


def test_rows_of_a_file_that_are_large_together_are_read_few_at_a_time(tmp_path: Path) -> None:
    large = ["x" * 2**20] * 40
    # in pages of a row: a page is the least that can be read
    pages = {"use_dictionary": False, "write_batch_size": 1, "data_page_size": 2**20}
    pq.write_table(pa.table({"t": large}), tmp_path / "d.parquet", compression="none", **pages)
    ranges = ranges_of(tmp_path / "d.parquet", DOCUMENTS)
    before = pa.total_allocated_bytes()
    most = 0
    for _, row in ranges.documents(0, 40):
        most = max(most, pa.total_allocated_bytes() - before)
        assert isinstance(row, Row)
    assert most < 2**20 * 25  # of 40 MiB in one row group


def test_a_line_that_is_too_long_is_passed_over_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"t": "a"}\n{"t": "' + b"x" * 100 + b'"}\n{"t": "b"}\n')
    monkeypatch.setattr(cutting, "LONGEST_LINE", 32)
    assert [line for _, line in lines_between(path, 0, path.stat().st_size)] == [b'{"t": "a"}\n', None, b'{"t": "b"}\n']
    ranges = ranges_of(path, DOCUMENTS)
    place, row = list(ranges.documents(0, path.stat().st_size))[1]
    assert isinstance(row, Unreadable)
    assert ranges.where(place) == "d.jsonl line 2"


def test_where_a_file_is_not_utf8_is_told_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"line\n" * 9 + b"caf\xe9\n")
    with pytest.raises(MissingSource) as error:
        list(text_between(path, 40, 50))
    assert error.value.found == "byte 0xe9 at position 48"


@given(TEXTS)
def test_pieces_are_all_of_a_text(text: str) -> None:
    pieces = list(pieces_of(text))
    assert "".join(piece for _, piece in pieces) == text
    assert [text[place : place + len(piece)] for place, piece in pieces] == [piece for _, piece in pieces]
    assert max(len(piece) for _, piece in pieces) <= 2 * 8


def test_a_long_text_is_tokenised_in_pieces_and_its_offsets_are_of_the_whole() -> None:
    texts = ["to be\nor not\nto be\n", "to"]
    encode, spell = encoder(LEARNED), spelling(LEARNED)
    assert [len(each) for each in in_pieces(texts, encode)] == [len(ids) for ids, _ in spelled_in_pieces(texts, spell)]
    ids, offsets = spelled_in_pieces(texts, spell)[0]
    assert "".join(texts[0][start:stop] for start, stop in offsets) == texts[0]
    assert ids.tolist() == in_pieces(texts, encode)[0].tolist()


def test_little_text_is_with_the_tokenizer_at_once() -> None:
    documents = [(place, Row((text,))) for place, text in enumerate(["aaa", "bbb", "ccc", "d" * 50, "e"])]
    sizes = [[len(row.texts[0]) for _, row in batch if isinstance(row, Row)] for batch in batches_of(documents)]
    assert sizes == [[3, 3, 3], [50], [1]]


def test_a_tokenizer_is_learned_from_all_of_a_small_text_and_from_a_drawn_part_of_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"line {number}\n" for number in range(100)]
    (tmp_path / "a.txt").write_text("".join(lines))
    ranges = ranges_of(tmp_path / "a.txt", None)
    part = [(ranges, 0, ranges.size)]
    monkeypatch.setattr("storage.datasets.text.reading.ranges.SAMPLED", 50)
    assert "".join(sample_texts(part, ranges.size, 0)) == "".join(lines)
    one, again, other = ("".join(sample_texts(part, 200, seed)) for seed in (0, 0, 1))
    assert one == again != other
    assert 100 < len(one) < 300


def test_what_a_sample_holds_is_spread_over_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.datasets.text.reading.ranges.SAMPLED", 10)
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text(f"{name * 9}\n" * 30)
    parts = [(ranges, 0, ranges.size) for ranges in (ranges_of(tmp_path / f"{n}.txt", None) for n in "abcd")]
    assert set("".join(sample_texts(parts, 400, random.Random(0).randrange(9)))) == set("abcd\n")
