"""Files of text in folders below folders, and compressed: the same rows as of plain ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.datasets import RawSample
from storage.datasets.base import RecordedFile
from storage.datasets.text.reading import cutting, opening
from storage.datasets.text.reading.opening import open_bytes, size_of
from storage.datasets.text.reading.ranges import ranges_of
from storage.datasets.text.reading.rows import Columns, Row
from storage.errors import MissingSource
from storage.language.tokenizer import train_tokenizer

Make = Callable[..., Any]
ReadAll = Callable[..., list[RawSample]]
LEARNED = train_tokenizer(["to be or not to be"] * 9, 270, "<|endoftext|>")
LINES = [json.dumps({"t": f"to be {number} or not", "c": "ab"[number % 2]}) + "\n" for number in range(30)]


def pack(path: Path, data: bytes) -> None:
    """Write a file, compressed as its name says, in two parts, as programs do that append."""
    half = len(data) // 2
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    elif path.suffix == ".zst":
        path.write_bytes(b"".join(bytes(pa.Codec("zstd").compress(part)) for part in (data[:half], data[half:])))
    else:
        path.write_bytes(data)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unpack and keep a few bytes at a time, so that a stream has to begin anew; cut lines after a few."""
    monkeypatch.setattr(opening, "UNPACKED_BYTES", 5)
    monkeypatch.setattr(opening, "KEPT_BYTES", 64)
    monkeypatch.setattr(cutting, "READ_BYTES", 16)
    yield
    opening._streams.clear()


@pytest.fixture
def text(tmp_path: Path, source: Make) -> Make:
    (tmp_path / "tokenizer.json").write_bytes(LEARNED)

    def make(path: str, *, recorded: Any = None, **options: Any) -> Any:
        made = source(kind="text", path=path, tokenizer="tokenizer.json", **options)
        return made.prepared(made.find_tokenizer(lambda name: None), recorded or {})

    return make


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["d.txt", "d.jsonl"])
@settings(max_examples=25)
@given(marks=st.lists(st.integers(0, 1600), max_size=5), lines=st.integers(0, 30))
def test_ranges_of_a_compressed_file_are_those_of_what_it_holds(
    name: str, packed: str, marks: list[int], lines: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    data = "".join(LINES[:lines]).encode()
    for path in (folder / name, folder / f"{name}{packed}"):
        pack(path, data)
    columns = None if name == "d.txt" else Columns(("t",))
    plain, compressed = (ranges_of(folder / each, columns) for each in (name, f"{name}{packed}"))
    assert compressed.size == plain.size == len(data)
    marks = [0, *(min(mark, plain.size) for mark in marks), plain.size]  # in any order: shards are
    for a, b in pairwise(marks):
        start, stop = sorted((a, b))
        places = [(each.cut(start), each.cut(stop)) for each in (plain, compressed)]
        assert places[0] == places[1]
        assert list(plain.documents(*places[0])) == list(compressed.documents(*places[0]))
        assert plain.digest(*places[0]) == compressed.digest(*places[0])


def test_shards_one_behind_another_unpack_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "KEPT_BYTES", 1024)
    pack(tmp_path / "d.jsonl.gz", "".join(LINES).encode())
    ranges, begun = ranges_of(tmp_path / "d.jsonl.gz", Columns(("t",))), []
    monkeypatch.setattr(opening._Unpacked, "_begin", begin_of(begun))
    for start in range(0, 1200, 200):
        rows = [row for _, row in ranges.documents(ranges.cut(start), ranges.cut(start + 200))]
        assert all(isinstance(row, Row) for row in rows)
        ranges.digest(ranges.cut(start), ranges.cut(start + 200))  # as an ingest has it, of each shard
    assert len(begun) == 1


def begin_of(begun: list[int]) -> Any:
    begin = opening._Unpacked._begin
    return lambda stream: (begun.append(1), begin(stream))[1]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_file_that_was_cut_off_is_refused_and_never_shorter(packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"d.jsonl{packed}"
    pack(path, "".join(LINES).encode())
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(MissingSource, match="cannot unpack"):
        size_of(path)
    with pytest.raises(MissingSource, match="cannot unpack"), open_bytes(path) as file:
        file.read(10**6)
    path.write_bytes(b"no such thing")
    with pytest.raises(MissingSource) as caught:
        size_of(path)
    assert caught.value.do == "write it anew, or unpack it by hand"


def test_files_lie_at_any_depth_and_are_called_by_their_path(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    (tmp_path / "d/a/b").mkdir(parents=True)
    for name in ("z.jsonl", "a/b/y.jsonl.gz", "a/x.jsonl.zst"):
        pack(tmp_path / "d" / name, "".join(LINES[:3]).encode())
    (tmp_path / "d/a/notes.md").write_text("none")
    source = text("d", block=32, column="t")
    assert source.files()["file"].to_list() == ["a/b/y.jsonl.gz", "a/x.jsonl.zst", "z.jsonl"]
    assert source.notes() == ["passed over: 1 × *.md"]
    samples = read_all(source)
    assert [sample.sample_id for sample in samples[:1]] == ["a/b/y.jsonl.gz:0:0"]
    rows = [sample.payload.tolist() for sample in samples]  # type: ignore[union-attr]
    assert rows[: len(rows) // 3] == rows[len(rows) // 3 : 2 * len(rows) // 3] == rows[2 * len(rows) // 3 :]


def test_a_file_of_an_older_cache_keeps_its_name_and_its_count(tmp_path: Path, text: Make) -> None:
    (tmp_path / "d").mkdir()
    pack(tmp_path / "d/z.jsonl", "".join(LINES).encode())
    looked = text("d", block=32, column="t").look_at("z.jsonl")
    recorded = {"z.jsonl": RecordedFile(*looked, 17)}
    assert text("d", block=32, column="t", recorded=recorded).files()["rows"].to_list() == [17]


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_texts_with_a_class_come_out_of_compressed_tables(
    packed: str, tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    options = {"column": "t", "label": "c", "length": 12}
    pack(tmp_path / "d.jsonl", "".join(LINES).encode())
    pack(tmp_path / f"e.jsonl{packed}", "".join(LINES).encode())
    table = "t,c\n" + "".join(f'"to be {number}\nor not",{"ab"[number % 2]}\n' for number in range(30))
    pack(tmp_path / "d.csv", table.encode())
    pack(tmp_path / f"e.csv{packed}", table.encode())
    for suffix in (".jsonl", ".csv"):
        plain = read_all(text(f"d{suffix}", **options))
        compressed = read_all(text(f"e{suffix}{packed}", **options))
        assert len(plain) == 30
        assert [(s.label, s.payload.tolist()) for s in plain] == [(s.label, s.payload.tolist()) for s in compressed]  # type: ignore[union-attr]


def test_a_part_of_a_compressed_file_is_one_of_what_it_holds(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    for name in ("d.jsonl", "d.jsonl.gz"):
        pack(tmp_path / name, "".join(LINES).encode())
    for part in ([0.0, 0.5], [0.5, 1.0]):
        plain, compressed = (
            [sample.payload.tolist() for sample in read_all(text(name, block=32, column="t", part=part))]
            for name in ("d.jsonl", "d.jsonl.gz")
        )
        assert plain == compressed


def test_a_whole_document_of_a_compressed_file_is_a_document(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    for name in ("d.txt", "d.txt.gz"):
        pack(tmp_path / name, "".join(LINES[:4]).encode())
    plain, compressed = (
        [sample.payload.tolist() for sample in read_all(text(name, block=256))] for name in ("d.txt", "d.txt.gz")
    )
    assert plain == compressed
    assert len(plain) == 1


def test_a_tokenizer_may_be_a_folder_that_has_one(tmp_path: Path, source: Make) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tokenizer.json").write_bytes(LEARNED)
    for path in ("model", "model/tokenizer.json"):
        assert source(kind="text", path="a.txt", block=8, tokenizer=path).find_tokenizer(lambda _: None) == LEARNED


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, source: Make) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(MissingSource) as caught:
        source(kind="text", path="a.txt", block=8, tokenizer="model").find_tokenizer(lambda _: None)
    assert caught.value.what == f"{tmp_path}/model holds no tokenizer.json"
    assert caught.value.found == "tokenizer.model"
    assert "AutoTokenizer.from_pretrained" in str(caught.value.do)
