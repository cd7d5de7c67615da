"""A student's answers as a stream: in order, bounded, nothing passed over, nothing half written."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models

from storage.datasets.samples import rows_of
from storage.errors import BadRequest, MissingSource
from storage.inputs import INPUTS
from storage.language.tokenizer import token_names
from student_train.using.answering import load_answerer
from student_train.using.predicting import predict
from student_train.using.predicting.ahead import ahead
from student_train.using.predicting.columns import number_rows
from student_train.using.predicting.samples import find_samples
from student_train.using.predicting.writing import writing
from tests.conftest import Program
from tests.student_train.using.toys import write_pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder of pictures, one of which does not decode."""
    folder = write_pictures(tmp_path / "new", ("green", "red"), 3, seed=9)
    (folder / "green/001.png").write_bytes(b"no picture")
    return folder


def test_a_folder_is_answered_in_order_and_what_does_not_decode_keeps_its_line(
    program: Program, run: Path, pictures: Path, tmp_path: Path
) -> None:
    ended = program("student", "predict", run, pictures, "-o", tmp_path / "out.csv")
    assert ended.code == 3
    assert "  green/001.png\n      UnidentifiedImageError" in ended.err
    table = pl.read_csv(tmp_path / "out.csv")
    assert table.columns == ["sample_id", "class", "probability", "error"]
    assert table["sample_id"].to_list() == [f"{name}/{n:03d}.png" for name in ("green", "red") for n in range(3)]
    assert table["class"].to_list() == ["green", None, "green", "red", "red", "red"]
    assert "UnidentifiedImageError" in table["error"][1]


def test_parquet_has_the_same_and_the_likeliest_classes(
    program: Program, run: Path, pictures: Path, tmp_path: Path
) -> None:
    program("student", "predict", run, pictures, "-o", tmp_path / "out.parquet", "--top", "3")
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table.columns == [
        "sample_id", "class", "probability", "class_2", "probability_2", "class_3", "probability_3", "error",
    ]  # fmt: skip
    known = table.filter(pl.col("error").is_null())
    total = known.select(pl.sum_horizontal("probability", "probability_2", "probability_3")).to_series()
    assert total.to_list() == pytest.approx([1.0] * 5, abs=1e-6)


def test_answers_are_the_same_however_many_are_answered_at_once(
    program: Program, run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_answerer(run, device="cpu")
    said = []
    for few, name in ((1, "one.parquet"), (64, "all.parquet")):
        monkeypatch.setattr(predict, "FEW_ROWS", few)
        monkeypatch.setattr(predict, "CPU_PIECE_BYTES", 0)
        pieces: list[int] = []
        with writing(tmp_path / name) as write:
            predict.predict_samples(
                asked, find_samples(str(pictures), asked.blueprint, ()), write, advance=pieces.append
            )
        assert pieces == ([1] * 6 if few == 1 else [6])
        said.append(pl.read_parquet(tmp_path / name))
    assert said[0].equals(said[1])


def test_photographs_are_answered_a_few_at_a_time_on_a_cpu_and_texts_as_ever(run: Path) -> None:
    asked = load_answerer(run, device="cpu")
    sides = {8: 256, 32: 42, 64: 10, 224: 6}

    def rows(device: str = "cpu", **changed: object) -> int:
        blueprint = asked.blueprint.model_copy(update=changed)
        return predict._piece_rows(replace(asked, blueprint=blueprint, device=torch.device(device)))

    assert {side: rows(input_shape=(3, side, side)) for side in sides} == sides
    assert rows("cuda", input_shape=(3, 32, 32)) == 256
    assert rows(input_shape=(4096,), inputs="texts", mean=None, std=None) == 256  # padded to a piece's longest


def test_the_terminal_and_json_say_the_same(program: Program, run: Path, pictures: Path) -> None:
    printed = program("student", "predict", run, pictures).out.splitlines()
    said = json.loads(program("student", "predict", run, pictures, "--json").out)
    assert [line.split()[0] for line in printed] == ["green", "no", "green", "red", "red", "red"]
    assert [row["class"] for row in said["predictions"]] == ["green", None, "green", "red", "red", "red"]
    assert (said["rows"], said["unreadable"], said["exit_code"]) == (6, 1, 3)


def test_an_out_that_is_there_is_left_alone_and_a_failure_leaves_nothing(
    program: Program, run: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.csv").write_text("mine")
    assert program("student", "predict", run, pictures, "-o", tmp_path / "out.csv").code == 2
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert program("student", "predict", run, pictures, "-o", tmp_path / "more.csv", "--top", "9").code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out.csv"]


def test_pixels_in_an_array_are_answered_without_being_shown_as_pictures(
    program: Program, run: Path, tmp_path: Path
) -> None:
    pixels = np.zeros((5, 3, 8, 8), np.uint8)
    pixels[2:, 2] = 220
    np.save(tmp_path / "x.npy", pixels)
    program("student", "predict", run, tmp_path / "x.npy", "-o", tmp_path / "out.csv")
    assert pl.read_csv(tmp_path / "out.csv")["class"].to_list()[2:] == ["blue"] * 3


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("-", None, "only texts are read from standard input"),
        ("nowhere", None, "there is no nowhere"),
        ("folder", "", "there is no image in"),
        ("x.docx", "x", "is nothing that this student takes"),
        ("x.parquet", "x", "cannot read"),
        ("x.npy", "x", "cannot read"),
    ],
)
def test_what_is_no_input_is_refused(
    program: Program, run: Path, tmp_path: Path, name: str, content: str | None, what: str
) -> None:
    inputs = name
    if content is not None:
        inputs = str(tmp_path / name)
        (tmp_path / name).write_text(content) if content else (tmp_path / name).mkdir()
    ended = program("student", "predict", run, inputs, "--json")
    assert ended.code == 2
    assert what in json.loads(ended.out)["what"]


@pytest.mark.parametrize("name", ["out.json", "out", "nowhere/out.csv"])
def test_where_nothing_can_be_written_is_told_before_anything_is_read(
    program: Program, run: Path, tmp_path: Path, name: str
) -> None:
    assert program("student", "predict", run, "nothing", "-o", tmp_path / name).code == 2
    assert [*tmp_path.iterdir()] == []


def test_a_folder_of_runs_names_one(program: Program, run: Path) -> None:
    said = json.loads(program("student", "predict", run.parent, "x", "--json").out)
    assert said["do"] == f"name one: {run}"


def test_samples_are_read_a_bounded_number_ahead() -> None:
    pulled: list[int] = []
    held = []
    for done, _ in enumerate(ahead((pulled.append(n) or n for n in range(100)), lambda n: n, threads=3)):
        held.append(len(pulled) - done)
    assert len(pulled) == 100
    assert max(held) <= 6


def test_numbers_that_are_none_have_no_answer() -> None:
    rows = [np.array([1, 2], np.float32), np.array([1, np.nan], np.float32)]
    assert rows_of(rows[:1], {"kind": "arrays"}, INPUTS["values"], (2,), None).tolist() == [[1, 2]]
    with pytest.raises(BadRequest, match="NaN or infinite"):
        rows_of(rows, {"kind": "arrays"}, INPUTS["values"], (2,), None)


def test_columns_are_found_by_name_whatever_else_a_table_has(tmp_path: Path) -> None:
    table = tmp_path / "new.csv"
    table.write_bytes(b'\xef\xbb\xbf"b, x",a,note\r\n2,1,"x\ny, ""z"""\r\n4,3,\r\n')
    assert [row.tolist() for _, row in number_rows(table, ["a", "b, x"]) if isinstance(row, np.ndarray)] == [
        [1, 2],
        [3, 4],
    ]
    with pytest.raises(BadRequest, match="column a is named twice"):
        next(number_rows(table, ["a", "a"]))
    table.write_text("a,a,b\n1,2,3\n")
    with pytest.raises(MissingSource, match="has two columns a"):
        next(number_rows(table, ["a", "b"]))


def test_a_name_that_is_no_utf8_keeps_its_line(program: Program, run: Path, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "new", ("green",), 1)
    os.rename(folder / "green/000.png", os.fsencode(folder) + b"/green/caf\xe9.png")
    said = json.loads(program("student", "predict", run, folder, "--json").out)
    assert [(row["sample_id"], row["class"]) for row in said["predictions"]] == [("green/caf\\xe9.png", "green")]


def test_two_that_write_one_file_do_not_write_into_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = writing(tmp_path / "out.csv"), writing(tmp_path / "out.csv")
    slow.__enter__()(pl.DataFrame({"a": [1]}))
    with monkeypatch.context() as another_process:
        another_process.setattr("os.getpid", lambda: 1)
        write = quick.__enter__()
    write(pl.DataFrame({"a": [2, 3]}))
    quick.__exit__(None, None, None)
    with pytest.raises(BadRequest, match="by now"):
        slow.__exit__(None, None, None)
    assert pl.read_csv(tmp_path / "out.csv")["a"].to_list() == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_tokens_have_names_whatever_the_model_of_their_tokenizer_is() -> None:
    learned = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))  # a list in its file, no mapping
    learned.add_special_tokens(["<end>"])
    assert token_names(learned.to_str().encode()) == {0: "<unk>", 1: "a", 2: "<end>"}


@pytest.mark.parametrize("command", ["predict", "export"])
def test_weights_of_another_run_beside_a_record_are_not_its_own(
    program: Program, run: Path, pictures: Path, tmp_path: Path, command: str
) -> None:
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    assert record["student_digest"] in (run / "run.json").read_text()
    (tmp_path / "run/student.json").write_text((run / "student.json").read_text() + " ")
    given = (pictures,) if command == "predict" else ("--format", "onnx", "-o", tmp_path / "out")
    refused = program("student", command, tmp_path / "run", *given)
    assert (refused.code != 0, "is not whole" in refused.err) == (True, True)
