"""Text with a class for each row, in tables of four kinds."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from storage.datasets import RawSample, RecordedFile, Unreadable
from storage.datasets.text import LabelledTextSource, TextSource, labelled
from storage.errors import BadRequest, LabelOutOfRange, MissingSource
from storage.language.tokenizer import encoder, train_tokenizer

Make = Callable[..., Any]
ReadAll = Callable[..., list[RawSample]]
LEARNED = train_tokenizer(["to be or not to be"] * 9, 270, "<|endoftext|>")
TEXTS = ["to be", "or, not", 'a "question"\nof lines', "ünd"]
LABELS = ["b", "a", "b", "c"]


@pytest.fixture
def text(tmp_path: Path, source: Make) -> Make:
    """Return a prepared source of labelled text."""
    (tmp_path / "tokenizer.json").write_bytes(LEARNED)

    def make(path: str, *, recorded: Any = None, **options: Any) -> Any:
        options = {"column": "text", "label": "label", "length": 64} | options
        made = source(kind="text", path=path, tokenizer="tokenizer.json", **options)
        return made.prepared(made.find_tokenizer(lambda name: None), recorded or {})

    return make


def ids(text: str) -> list[int]:
    return encoder(LEARNED)([text])[0].tolist()


def write(path: Path, texts: list[str] = TEXTS, labels: list[Any] = LABELS) -> None:
    """Write a table of two columns in the form that the file's name asks for."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"label": labels, "text": texts}), path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"text": t, "label": c}) for t, c in zip(texts, labels, strict=True)]
        path.write_text("\n".join(lines))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerows([["label", "text"], *zip(labels, texts, strict=True)])


def found(samples: list[RawSample]) -> list[tuple[str, Any, int | None]]:
    return [
        (s.sample_id, str(s.payload) if isinstance(s.payload, Unreadable) else s.payload.tolist(), s.label)  # type: ignore[union-attr]
        for s in samples
    ]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_rows(kind: str, tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    write(tmp_path / f"d.{kind}")
    source = text(f"d.{kind}", quotes=True)
    assert source.class_names() == ["a", "b", "c"]
    assert found(read_all(source)) == [
        (f"d.{kind}:{i}", ids(t), "abc".index(c)) for i, (t, c) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]


def test_a_label_makes_it_classification_and_a_task_says_so_too(source: Make) -> None:
    common = {"kind": "text", "path": "d.csv", "tokenizer": "t", "column": "x"}
    assert isinstance(source(**common, label="y", length=8), LabelledTextSource)
    assert isinstance(source(**common, task="text_classification", classes=["a"], length=8), LabelledTextSource)
    assert isinstance(source(**common, block=8), TextSource)
    assert isinstance(source(**common, block=8, task="language_model"), TextSource)


def test_columns_of_a_csv_without_names_are_numbered_from_0_and_joined(
    tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    (tmp_path / "d.csv").write_text('"3","to","be"\n"1","or, not","to\nbe"\n')
    source = text("d.csv", column=[1, 2], label=0, joined_by=" or ")
    assert source.class_names() == ["1", "3"]
    assert found(read_all(source)) == [("d.csv:0", ids("to or be"), 1), ("d.csv:1", ids("or, not or to\nbe"), 0)]


def test_a_line_of_a_text_file_is_a_text_and_has_no_columns(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    (tmp_path / "d.txt").write_bytes(b'to be, "or\n\nnot\r\n\xff\n')
    of_lines = {"label": None, "task": "vector"}
    rows = found(read_all(text("d.txt", column=0, **of_lines)))
    assert rows[:2] == [("d.txt:0", ids('to be, "or'), None), ("d.txt:1", ids("not"), None)]
    assert "is not UTF-8" in rows[2][1]
    with pytest.raises(MissingSource, match="has lines, and no columns"):
        text("d.txt", column=1, **of_lines).files()


def test_a_text_has_what_the_template_puts_around_it_and_is_cut_within(
    tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    tokenizer = json.loads(LEARNED)
    special = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    ends = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    single = [ends, {"Sequence": {"id": "A", "type_id": 0}}, ends]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {special["id"]: special},
    }
    write(tmp_path / "d.csv")
    source = text("d.csv", length=4)
    with pytest.raises(BadRequest, match="cannot have special tokens"):
        text("d.csv", add_special_tokens=True)
    around = source.model_copy(update={"add_special_tokens": True, "length": 4})
    around = around.prepared(json.dumps(tokenizer | {"post_processor": template}).encode(), {})
    kept = [around.decode(sample.payload).tolist() for sample in read_all(around)]
    assert kept == [[0, *ids(each)[:2], 0] for each in TEXTS]
    assert [around.num_items(sample.payload) for sample in read_all(around)] == [len(ids(each)) + 2 for each in TEXTS]


def test_found_labels_that_are_whole_numbers_are_sorted_as_numbers(tmp_path: Path, text: Make) -> None:
    write(tmp_path / "d.jsonl", ["x"] * 4, [10, 2, -1, 2])
    assert text("d.jsonl").class_names() == ["-1", "2", "10"]


def test_classes_are_named_by_what_is_written_and_have_the_jobs_order(
    tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    write(tmp_path / "d.csv", ["x", "x", "x"], ["2", "1", "2"])
    source = text("d.csv", classes={"2": "sports", "1": "world"})
    assert source.class_names() == ["sports", "world"]
    assert [sample.label for sample in read_all(source)] == [0, 1, 0]


def test_a_list_of_names_is_never_matched_by_position(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    write(tmp_path / "d.csv", ["x", "x"], ["1", "2"])
    with pytest.raises(LabelOutOfRange) as error:
        read_all(text("d.csv", classes=["world", "sports"]))
    assert (error.value.what, error.value.found) == ("d.csv line 2 of dataset d has a label that is no class", "'1'")
    assert error.value.expected == "'world', 'sports'"


def test_the_names_are_not_content_but_what_they_stand_for_is(text: Make) -> None:
    one, other = text("d.csv", classes={"1": "a", "2": "b"}), text("e.csv", classes={"1": "c", "2": "b"})
    assert one.content() == other.content() != text("d.csv", classes={"2": "a", "1": "b"}).content()


@pytest.mark.parametrize(
    "option", [{"length": 63}, {"label": "l"}, {"joined_by": ""}, {"column": "t"}, {"quotes": False}]
)
def test_what_decides_rows_is_content(option: dict[str, Any], text: Make) -> None:
    assert text("d.csv").content() != text("d.csv", **option).content()


def test_a_row_is_cut_at_its_length_and_its_digest_is_of_the_whole(
    tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    write(tmp_path / "d.csv", ["abcdef", "ab"], ["x", "y"])
    source = text("d.csv", length=4)
    long, short = read_all(source)
    assert [source.decode(sample.payload).tolist() for sample in (long, short)] == [ids("abcd"), ids("ab")]
    assert len(long.payload) == 6


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_row_without_a_label_has_none(kind: str, tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    write(tmp_path / f"d.{kind}", ["a", "b"], ["x", None])
    assert [sample.label for sample in read_all(text(f"d.{kind}"))] == [0, None]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_of_labels_that_no_row_has_is_refused(kind: str, tmp_path: Path, text: Make) -> None:
    write(tmp_path / f"d.{kind}", ["a", "b"], [None, None])
    with pytest.raises(MissingSource, match=rf"d\.{kind} has no label in column label"):
        text(f"d.{kind}").class_names()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_empty_text_is_quarantined_with_its_row(kind: str, tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    write(tmp_path / f"d.{kind}", ["a", " \n", "c"], ["x", "x", "x"])
    first, second, third = read_all(text(f"d.{kind}"))
    assert (
        str(second.payload)
        == f"d.{kind} {'row 1' if kind == 'parquet' else {'csv': 'line 3', 'jsonl': 'line 2'}[kind]}: has no text"
    )
    assert [s.payload.tolist() for s in (first, third)] == [ids("a"), ids("c")]  # type: ignore[union-attr]


def test_a_csv_row_with_other_fields_is_quarantined_with_its_line(
    tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    (tmp_path / "d.csv").write_text('label,text\nx,"two\nlines"\n\ny,a,b\nz\nx,c\n')
    assert [payload for _, payload, _ in found(read_all(text("d.csv")))] == [
        ids("two\nlines"),
        "d.csv line 5: has 3 fields, the first line has 2",
        "d.csv line 6: has 1 fields, the first line has 2",
        ids("c"),
    ]


def test_a_csv_whose_quotes_do_not_close_is_refused_with_the_line(tmp_path: Path, text: Make) -> None:
    (tmp_path / "d.csv").write_text('label,text\nx,a\ny,"b\nx,c\n')
    with pytest.raises(MissingSource) as error:
        text("d.csv").files()
    assert error.value.found == "from line 3 on: unexpected end of data"
    assert "quotes = false" in str(error.value.do)


def test_without_quotes_a_quotation_mark_is_a_character(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    (tmp_path / "d.tsv").write_text('label\ttext\nx\t"a\ny\tb"\n')
    assert [payload for _, payload, _ in found(read_all(text("d.tsv")))] == [ids('"a'), ids('b"')]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(
    kind: str, tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    write(tmp_path / f"d.{kind}")
    path = tmp_path / f"d.{kind}"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert found(read_all(text(f"d.{kind}")))[0] == (f"d.{kind}:0", ids("to be"), 1)


def test_a_csv_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path, text: Make) -> None:
    (tmp_path / "d.csv").write_bytes(b"label,text\nx,caf\xe9\n")
    with pytest.raises(MissingSource) as error:
        text("d.csv").files()
    assert error.value.found == "byte 0xe9 at position 16"


@pytest.mark.parametrize(
    ("name", "content", "options", "what"),
    [
        ("d.csv", "label,txt\nx,a\n", {}, "has no column text"),
        ("d.csv", "label,text,text\nx,a,b\n", {}, "has two columns text"),
        ("d.csv", "x,a\n", {"column": 2, "label": 0}, "has no column 2"),
        ("d.jsonl", '{"text": "a"}', {"column": 1, "label": 0}, "has names for its columns"),
        ("d.xml", "a", {}, "is no table of text"),
        ("d.txt", "a", {}, "has lines, and no columns"),
    ],
)
def test_a_column_that_is_not_there_is_refused(
    name: str, content: str, options: dict[str, Any], what: str, tmp_path: Path, text: Make
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(MissingSource, match=what):
        text(name, **options).files()


@pytest.mark.parametrize("column", ["text", "label"])
def test_a_parquet_column_of_another_type_is_refused(column: str, tmp_path: Path, text: Make) -> None:
    values = {"text": ["a"], "label": ["x"]} | {column: [1.5]}
    pq.write_table(pa.table(values), tmp_path / "d.parquet")
    with pytest.raises(MissingSource, match=rf"column {column} of .* holds no (text|labels)"):
        text("d.parquet").files()


@pytest.mark.parametrize("labels", [pa.array([3, 1, 3]), pa.array(["3", "1", "3"]).dictionary_encode()])
def test_parquet_labels_may_be_numbers_or_categories(
    labels: pa.Array, tmp_path: Path, text: Make, read_all: ReadAll
) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": labels}), tmp_path / "d.parquet")
    source = text("d.parquet")
    assert (source.class_names(), [s.label for s in read_all(source)]) == (["1", "3"], [1, 0, 1])


def test_a_line_of_json_whose_label_is_no_class_is_quarantined(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    write(tmp_path / "d.jsonl", ["a", "b", "c"], [True, 1.5, False])
    source = text("d.jsonl")
    assert source.class_names() == ["false", "true"]
    assert [label for _, _, label in found(read_all(source))] == [1, None, 0]
    assert found(read_all(source))[1][1] == "d.jsonl line 2: has no text in label: float"


def test_a_first_line_of_names_that_the_job_does_not_tell_of_is_refused(tmp_path: Path, text: Make) -> None:
    write(tmp_path / "d.csv", ["a", "b"] * 6, ["1", "2"] * 6)
    with pytest.raises(MissingSource) as error:
        text("d.csv", column=1, label=0).class_names()
    assert error.value.found == "label 'label', which no other row has"
    assert text("d.csv", column=1, label=0, header=True).class_names() == ["1", "2"]


def test_parts_of_a_table_meet_without_gap_or_overlap(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    write(tmp_path / "d.csv", list("abcdefghijk"), ["x"] * 11)
    parts = [found(read_all(text("d.csv", part=part))) for part in ([0.0, 0.9], [0.9, 1.0])]
    assert [[payload for _, payload, _ in part] for part in parts] == [
        [ids(letter) for letter in "abcdefghi"],
        [ids("j"), ids("k")],
    ]


def test_a_folder_is_its_tables_by_name_with_the_classes_of_all(tmp_path: Path, text: Make, read_all: ReadAll) -> None:
    write(tmp_path / "b.csv", ["a"], ["y"])
    write(tmp_path / "a.jsonl", ["b"], ["z"])
    source = text(".")
    assert source.class_names() == ["y", "z"]
    assert [(s.sample_id, s.label) for s in read_all(source)] == [("a.jsonl:0", 1), ("b.csv:0", 0)]


def test_a_tokenizer_is_learned_from_the_texts_alone(tmp_path: Path, source: Make) -> None:
    write(tmp_path / "d.csv", ["abab abab"] * 9, ["label"] * 9)
    options = {"kind": "text", "path": "d.csv", "column": "text", "label": "label", "length": 8}
    made = source(**options, train_tokenizer={"vocabulary": 260})
    assert made.find_tokenizer(lambda name: None) == train_tokenizer(["abab abab"] * 9, 260, "<|endoftext|>")


def test_files_that_a_cache_has_counted_are_not_read_again(
    tmp_path: Path, text: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "d.csv")
    ((file, size, version, rows),) = text("d.csv").files().rows()
    assert rows == 4
    labelled._told.cache_clear()
    monkeypatch.setattr(labelled, "rows_of", lambda *_: pytest.fail("read again"))
    assert text("d.csv", recorded={file: RecordedFile(size, version, 7)}).files()["rows"].to_list() == [7]
    with pytest.raises(pytest.fail.Exception):
        text("d.csv", recorded={file: RecordedFile(size, version + "0", 7)}).files()


@pytest.mark.parametrize(
    "options",
    [
        {"column": -1},
        {"column": "a", "header": False},
        {"column": "label"},
        {"column": ["a", "label"]},
        {"column": []},
        {"classes": ["a", "a"]},
        {"classes": {"1": "a", "2": "a"}},
        {"classes": []},
        {"classes": ["a ", "b"]},
        {"classes": {" 1": "a"}},
        {"length": 0},
        {"block": 8},
        {"task": "language_model"},
        {"tokenizer_of": "other"},
    ],
)
def test_options_that_do_not_agree_are_refused(options: dict[str, Any], source: Make) -> None:
    common = {"kind": "text", "path": "d.csv", "tokenizer": "t", "column": "a", "label": "label", "length": 8}
    with pytest.raises(ValidationError):
        source(**common | options)
