"""Text in files, lines and columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from storage.datasets import RawSample, Unreadable
from storage.datasets.text import blocks as text_module
from storage.errors import BadRequest, MissingSource
from storage.inputs.packed import FIRST
from storage.language.tokenizer import encoder, train_tokenizer

Make = Callable[..., Any]
ReadAll = Callable[..., list[RawSample]]
LEARNED = train_tokenizer(["to be or not to be"] * 9, 270, "<|endoftext|>")


@pytest.fixture
def text(tmp_path: Path, source: Make) -> Make:
    """Return a prepared source of text; documents are refused when longer than `block`."""
    (tmp_path / "tokenizer.json").write_bytes(LEARNED)

    def make(path: str = "a.txt", *, block: int = 8, recorded: Any = None, **options: Any) -> Any:
        made = source(kind="text", path=path, block=block, tokenizer="tokenizer.json", **options)
        return made.prepared(made.find_tokenizer(lambda name: None), recorded or {})

    return make


def metaspace(words: list[str]) -> bytes:
    """Return a tokenizer of whole words after "▁", token 0 is "</s>"."""
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    end = {"id": 0, "content": "</s>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    scored = [["</s>", 0.0], *([word, -1.0] for word in words)]
    model = {"type": "Unigram", "unk_id": 0, "vocab": scored, "byte_fallback": False}
    parts = {"version": "1.0", "added_tokens": [end | flags], "pre_tokenizer": spaces, "model": model}
    return json.dumps(parts | dict.fromkeys(("normalizer", "post_processor", "decoder"))).encode()


def ids(text: str) -> list[int]:
    return encoder(LEARNED)([text])[0].tolist()


def labels(samples: list[RawSample]) -> list[list[int]]:
    return [sample.payload[1].tolist() for sample in samples]  # type: ignore[index]


def test_a_file_is_a_document_in_blocks_with_permanent_ids(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    (tmp_path / "a.txt").write_text("wherefore")
    source = text(long_documents="split")
    (first, second) = samples = read_all(source)
    stream = [*ids("wherefore"), 0]
    assert [sample.sample_id for sample in samples] == ["a.txt:0:0", "a.txt:0:1"]
    assert source.decode(first.payload).tolist() == stream[:8]
    assert source.decode_labels(first.payload).tolist() == stream[1:9]
    assert source.decode(second.payload).tolist() == [*stream[8:], *[0] * (16 - len(stream))]


def test_the_words_of_a_text_are_all_there(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    from tokenizers import Tokenizer

    words = "To be, or not to be:\r\n\tthat is the question — ŧ\ufeff\0 " * 20
    (tmp_path / "a.txt").write_bytes(words.encode())
    tokens = np.concatenate([sample.payload[0] for sample in read_all(text(long_documents="split"))])  # type: ignore[index]
    assert Tokenizer.from_str(LEARNED.decode()).decode(tokens.tolist(), skip_special_tokens=True) == words


def test_parts_of_a_file_meet_without_gap_or_overlap(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    (tmp_path / "a.txt").write_text("abc\ndef\nghijk")
    parts = [read_all(text(block=16, part=part)) for part in ([0.0, 0.5], [0.5, 1.0])]
    assert [p[0].payload[0].tolist() for p in parts] == [  # type: ignore[index]
        [*ids("abc\ndef\n"), *[0] * (16 - len(ids("abc\ndef\n")))],
        [*ids("ghijk"), *[0] * (16 - len(ids("ghijk")))],
    ]


def test_a_folder_is_its_text_files_by_name(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text("x")
    assert [sample.sample_id for sample in read_all(text(path="."))] == ["a.txt:0:0", "b.txt:0:0"]


def jsonl(path: Path, *lines: Any) -> None:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )


def parquet(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_is_documents_after_their_prompts(kind: str, tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    if kind == "jsonl":
        jsonl(tmp_path / "d.jsonl", {"q": "ab", "a": "cd"}, {"q": "", "a": "ef"})
    else:
        parquet(tmp_path / "d.parquet", q=["ab", ""], a=["cd", "ef"])
    (sample,) = read_all(text(path=f"d.{kind}", column="a", prompt="q"))
    c, d, e, f = (ids(letter)[0] for letter in "cdef")
    assert labels([sample]) == [[-1, c, d, 0, -1, f, 0, -1]]
    assert sample.payload[0].tolist() == [*ids("ab"), c, d, 0, e, f, 0]  # type: ignore[index]


def test_a_prompt_and_its_answer_are_one_text_to_the_tokenizer(tmp_path: Path, source: Make, read_all: ReadAll) -> None:
    # "▁" goes before a text; of an answer by itself it would be a space that is not there
    (tmp_path / "t.json").write_bytes(metaspace(["▁question", "Answer", ":", "▁yes", "▁Answer"]))
    jsonl(tmp_path / "d.jsonl", {"q": "question", "a": "Answer: yes"})
    made = source(kind="text", path="d.jsonl", column="a", prompt="q", block=8, tokenizer="t.json", end_of_text="</s>")
    (sample,) = read_all(made.prepared(made.find_tokenizer(lambda name: None), {}))
    inputs, labels = sample.payload.tolist()  # type: ignore[union-attr]
    assert inputs == [1, 2, 3, 4, 0, 0, 0, 0]
    assert labels == [2, 3, 4, 0, -1, -1, -1, -1]


def test_a_token_that_prompt_and_answer_share_is_the_answers_and_is_told(
    tmp_path: Path, source: Make, read_all: ReadAll
) -> None:
    (tmp_path / "t.json").write_bytes(metaspace(["▁a", "▁bc"]))
    jsonl(tmp_path / "d.jsonl", {"q": "a b", "a": "c"}, {"q": "a", "a": " bc"}, {"q": "a bc", "a": ""})
    options = {
        "path": "d.jsonl",
        "column": "a",
        "prompt": "q",
        "block": 3,
        "tokenizer": "t.json",
        "end_of_text": "</s>",
    }
    made = source(kind="text", pack=False, **options)
    samples = read_all(made.prepared(made.find_tokenizer(lambda name: None), {}))
    assert [sample.payload[0].tolist() for sample in samples] == [[1, 2, 0]] * 3  # type: ignore[index]
    assert labels(samples) == [[2, 0, -1], [2, 0, -1], [-1, 0, -1]]
    assert [sample.remarks for sample in samples] == [(text_module.SHARED,), (), ()]


@pytest.mark.parametrize("kind", ["blocks", "rows"])
def test_the_name_of_a_special_token_is_spelled_out_and_told_or_parsed(
    kind: str, tmp_path: Path, source: Make, read_all: ReadAll
) -> None:
    (tmp_path / "t.json").write_bytes(LEARNED)
    jsonl(tmp_path / "d.jsonl", {"t": "a<|endoftext|>b"}, {"t": "c"})
    size = {"block": 32, "pack": False} if kind == "blocks" else {"task": "text_classification", "length": 32}

    def read(**options: Any) -> list[RawSample]:
        made = source(kind="text", path="d.jsonl", column="t", tokenizer="t.json", **size, **options)
        return read_all(made.prepared(made.find_tokenizer(lambda name: None), {}))

    def tokens(sample: RawSample) -> list[int]:
        assert isinstance(sample.payload, np.ndarray)
        return (sample.payload[0] if kind == "blocks" else sample.payload).tolist()

    (spelled, other), (parsed, _) = read(), read(special_tokens="parsed")
    told = 'texts spell out <|endoftext|>, which special_tokens = "parsed" makes a special token'
    assert [sample.remarks for sample in (spelled, other, parsed)] == [(told,), (), ()]
    assert tokens(spelled)[:15] == ids("a<|endoftext|>b")
    assert tokens(parsed)[:3] == [*ids("a"), 0, *ids("b")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"t": "\xff"}', "line 2: is not UTF-8: byte 0xff at position 7"),
        (b"{", "line 2: is not JSON"),
        (b"[" * 50_000, "line 2: is not JSON"),
        (b"[]", "line 2: is list, not an object with t"),
        (b'{"t": 3}', "line 2: has no text in t: int"),
        (b"{}", "line 2: has no text in t: nothing"),
        (b'{"t": "\\ud800"}', "line 2: has a lone surrogate in t"),
    ],
)
def test_a_line_that_cannot_be_read_is_a_quarantined_block(
    line: bytes, reason: str, tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    jsonl(tmp_path / "d.jsonl", {"t": "a"}, line, {"t": "b"})
    first, second, third = read_all(text(path="d.jsonl", column="t"))
    assert isinstance(second.payload, Unreadable)
    assert f"d.jsonl {reason}" in str(second.payload)
    assert [s.payload[0, 0] for s in (first, third)] == [ids("a")[0], ids("b")[0]]  # type: ignore[index]


def test_bytes_of_a_parquet_string_that_are_not_utf8_are_quarantined(
    tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    bad = pa.array([b"a\xe9"]).view(pa.string())
    parquet(tmp_path / "d.parquet", t=bad)
    (sample,) = read_all(text(path="d.parquet", column="t"))
    assert str(sample.payload) == "d.parquet row 0: is not UTF-8: byte 0xe9 at position 1"


def test_a_file_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(MissingSource) as error:
        read_all(text(long_documents="split"))
    assert (error.value.what, error.value.found) == (f"{tmp_path}/a.txt is not UTF-8", "byte 0xe9 at position 3")


def test_a_document_longer_than_a_block_is_set_aside_by_name_and_length(
    tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    jsonl(tmp_path / "d.jsonl", {"t": "a"}, {"t": "abcdefgh"}, {"t": "b"})
    _, reason, _ = (sample.payload for sample in read_all(text(path="d.jsonl", column="t")))
    assert str(reason) == "d.jsonl line 2: has 9 tokens, end-of-text among them, of block = 8 at most"
    (tmp_path / "a.txt").write_text("abcdefgh")
    (sample,) = read_all(text())
    assert str(sample.payload) == "a.txt: has 9 tokens, end-of-text among them, of block = 8 at most"


def test_too_many_long_documents_among_the_first_are_refused(tmp_path: Path, text: Make) -> None:
    jsonl(tmp_path / "d.jsonl", {"t": "a"}, {"t": "abcdefgh"})
    with pytest.raises(BadRequest) as error:
        text(path="d.jsonl", column="t").known_input()
    assert (error.value.what, error.value.do) == (
        "documents of d are longer than a block",
        'long_documents = "split" cuts them; or block = 9, the longest here',
    )
    assert str(error.value.found).startswith("1 of the first 2, such as\nd.jsonl line 2: has 9 tokens")
    assert text(path="d.jsonl", column="t", long_documents="split").known_input() == ((8,), "int32")


def test_a_document_as_long_as_a_block_with_its_end_is_taken(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    (tmp_path / "a.txt").write_text("abcdefg")
    assert len(read_all(text())) == 1


@pytest.mark.parametrize(("columns", "what"), [({"t": [1]}, "holds no text"), ({"u": ["a"]}, "has no column t")])
def test_a_column_that_is_not_there_or_no_text_is_refused(columns: Any, what: str, tmp_path: Path, text: Make) -> None:
    parquet(tmp_path / "d.parquet", **columns)
    with pytest.raises(MissingSource, match=what):
        text(path="d.parquet", column="t").files()


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path, text: Make) -> None:
    (tmp_path / "d.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(MissingSource, match="as Parquet"):
        text(path="d.parquet", column="t").files()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokenizer": "t", "tokenizer_of": "x"},
        {"tokenizer": "t", "train_tokenizer": {"vocabulary": 300}},
        {"tokenizer": "t", "prompt": "q"},
        {"tokenizer": "t", "path": "d.jsonl"},
        {"tokenizer": "t", "part": [0.5, 0.5]},
        {"tokenizer": "t", "block": 1},
        {"train_tokenizer": {"vocabulary": 256}},
    ],
)
def test_options_that_do_not_agree_are_refused(options: dict[str, Any], source: Make) -> None:
    with pytest.raises(ValidationError):
        source(**({"kind": "text", "path": "a.txt", "block": 8} | options))


def test_an_end_of_text_that_the_tokenizer_lacks_is_refused(tmp_path: Path, text: Make) -> None:
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(BadRequest, match="no token '</s>'"):
        text(end_of_text="</s>")


def test_a_tokenizer_of_a_dataset_that_is_not_there_is_refused(tmp_path: Path, source: Make) -> None:
    made = source(kind="text", path="a.txt", block=8, tokenizer_of="train")
    with pytest.raises(MissingSource) as error:
        made.find_tokenizer(lambda name: None)
    assert error.value.do == "put [[dataset]] train before d"


def test_a_promise_says_what_it_is_of_only_where_it_is_not_as_it_always_was(text: Make) -> None:
    plain, asked = text(column="t"), text(column="t", prompt="q", special_tokens="parsed")
    # of a prompt and its answer the tokens are others than before
    assert asked.content().keys() - plain.content().keys() == {"prompt_tokens", "special_tokens"}
    assert plain.content().keys() == {
        *("kind", "validation", "seed", "column", "prompt", "part", "block", "end_of_text"),
        *("long_documents", "pack", "train_tokenizer", "ranges"),
    }


def test_where_text_lies_and_its_tokenizer_are_no_content(text: Make, source: Make) -> None:
    assert text("a.txt").content() == source(kind="text", path="b.txt", block=8, tokenizer_of="t").content()


@pytest.mark.parametrize("option", [{"part": [0.0, 0.5]}, {"pack": False}, {"long_documents": "split"}, {"block": 9}])
def test_what_decides_blocks_is_content(option: dict[str, Any], text: Make) -> None:
    assert text().content() != text(**option).content()


def test_a_byte_order_mark_is_no_text(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    (sample,) = read_all(text())
    assert sample.payload[0].tolist() == [*ids("abc"), *[0] * 5]  # type: ignore[index]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.txt", "d.jsonl"])
def test_utf_16_is_named(tmp_path: Path, encoding: str, name: str, text: Make, read_all: ReadAll) -> None:
    (tmp_path / name).write_bytes("\ufeff{}".encode(encoding))
    with pytest.raises(MissingSource) as caught:
        read_all(text(path=name, column="t" if name == "d.jsonl" else None))
    assert (caught.value.found, caught.value.do) == (
        "the byte-order mark of UTF-16",
        f"convert it: iconv -f utf-16 -t utf-8 {name}",
    )


@pytest.mark.parametrize("long_documents", ["refuse", "split"])
def test_lines_share_a_row_and_see_nothing_of_each_other(
    tmp_path: Path, text: Make, read_all: ReadAll, long_documents: str
) -> None:
    lines = ["to be", "or", "not to be", "to be or not", "or not"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"t": line}) + "\n" for line in lines))
    source = text("a.jsonl", column="t", block=16, document_mask=True, long_documents=long_documents)
    rows = list(source.rows_of(read_all(source)))
    assert len(rows) < len(lines)
    found = []
    for row in rows:
        assert isinstance(row.payload, np.ndarray)
        begins = np.flatnonzero(row.payload[0] <= FIRST)
        for tokens, said in zip(*(np.split(each, begins[1:]) for each in row.payload), strict=True):
            assert said.tolist() == [*tokens[1:].tolist(), -1]
            found.append([FIRST - tokens[0], *tokens[1:]])
    assert sorted(found) == sorted([*ids(line), 0] for line in lines)


def test_pieces_of_a_long_document_begin_anew(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    (tmp_path / "a.txt").write_text("wherefore art thou")
    stream = [*ids("wherefore art thou"), 0]
    source = text(document_mask=True, long_documents="split")
    rows = list(source.rows_of(read_all(source)))
    assert [len(row.payload[0]) for row in rows] == [8] * (len(stream) // 8) + [len(stream) % 8] * (len(stream) % 8 > 0)
    assert all(row.payload[0][0] <= FIRST for row in rows)
    assert np.concatenate([row.payload[1] for row in rows]).tolist() == [*stream[1:], -1]


def test_a_mask_of_documents_is_of_several_in_a_row(text: Make) -> None:
    with pytest.raises(ValidationError, match="leave `pack = false` out"):
        text(document_mask=True, pack=False)
