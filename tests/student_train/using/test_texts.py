"""Students of texts: tables, lines and standard input; what is no text keeps its line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import polars as pl
import pytest

from student_train.run_files.records import read_record
from student_train.running.train import train_students
from tests.conftest import Program
from tests.texts.toys import request, small_encoder, text_cache, texts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    summary = train_students(request(text_cache(folder), folder / "runs", small_encoder()))
    assert not summary.errors
    return folder / "runs/encoder"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return a table with an empty text and one of another kind."""
    rows = [{"label": label, "text": text} for label, text in texts(9, seed=4)]
    rows[2]["text"], rows[5]["text"] = "", 7  # type: ignore[assignment]
    (tmp_path / "new.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "new.jsonl"


def test_a_table_is_answered_by_the_column_of_the_students_own_data(
    program: Program, run: Path, table: Path, tmp_path: Path
) -> None:
    ended = program("student", "predict", run, table, "-o", tmp_path / "out.csv")
    assert ended.code == 3, ended.err
    found = pl.read_csv(tmp_path / "out.csv")
    assert found["sample_id"].to_list() == [f"new.jsonl:{number}" for number in range(9)]  # as a cache names its rows
    assert [n for n, error in enumerate(found["error"].to_list()) if error is not None] == [2, 5]
    measured = json.loads(program("student", "eval", run, table, "--json").out)
    assert [each["sample_id"] for each in measured["unreadable"]] == ["new.jsonl:2", "new.jsonl:5"]
    refused = json.loads(program("student", "predict", run, table, "--column", "title", "--json").out)
    assert refused["rows"] == refused["unreadable"] == 9  # JSON lines may each lack a column


def test_lines_of_a_file_and_of_standard_input_are_answered_alike(
    program: Program, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(f"{text}\n" for _, text in texts(5, seed=6)) + "\n"
    (tmp_path / "new.txt").write_text(lines)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    of_file, of_stdin = (
        [
            (row["class"], row["error"])
            for row in json.loads(program("student", "predict", run, inputs, "--json").out)["predictions"]
        ]
        for inputs in (tmp_path / "new.txt", "-")
    )
    assert of_file == of_stdin
    assert of_file[5] == (None, "an empty line")


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_student_in_the_place_of_its_inputs_is_told_as_that(
    program: Program, run: Path, table: Path, command: str
) -> None:
    ended = program("student", command, table, run)
    assert ended.code == 2
    assert "the arguments look swapped" in ended.err
    assert f"{run} {table}" in ended.err


def test_a_folder_or_a_picture_is_no_text(program: Program, run: Path, tmp_path: Path) -> None:
    assert program("student", "predict", run, tmp_path).code == 2
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    said = json.loads(program("student", "predict", run, tmp_path / "a.csv", "--json").out)
    assert (said["error"], said["found"]) == ("MissingSource", "a, b")


def test_a_new_table_is_measured_by_the_names_in_its_column_and_held_rows_as_in_training(
    program: Program, run: Path, tmp_path: Path
) -> None:
    rows = [{"label": label, "text": text} for label, text in texts(30, seed=8) if label != "plant"]
    (tmp_path / "new.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = json.loads(program("student", "eval", run, tmp_path / "new.jsonl", "--json").out)
    assert (found["rows"], found["notes"]) == (20, ["new.jsonl has no plant, which the student knows"])
    record = read_record(run)
    assert record is not None
    held = json.loads(program("student", "eval", run, "texts/validation", "--json").out)
    for name in ("accuracy", "macro_f1", "agreement", "cross_entropy"):
        assert held["figures"][name] == pytest.approx(getattr(record, name), abs=1e-6)
    assert held["teacher"] == "looking"


@pytest.mark.slow
def test_an_exported_encoder_takes_texts_with_its_own_tokenizer(
    program: Program, run: Path, table: Path, tmp_path: Path
) -> None:
    assert program("student", "export", run, "--format", "onnx", "-o", tmp_path / "onnx").code == 0
    of_run, of_file = (
        [
            row["probability"]
            for row in json.loads(program("student", "predict", place, table, "--json").out)["predictions"]
        ]
        for place in (run, tmp_path / "onnx")
    )
    assert of_file == pytest.approx(of_run, abs=1e-5)
