"""`student report` as a user meets it: what it prints, and what it makes of requests that make no sense."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from student_train.report import REPORT_FILE
from student_train.run_files.predictions_file import PREDICTIONS_FILE
from student_train.running.train import train_students
from tests.conftest import Program
from tests.jobs.test_isolation import rooms_of
from tests.student_train.toys import KD, Recipe, request_of, student, write_cache


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    cache = write_cache(folder / "cache", Recipe())
    train_students(request_of(cache, folder / "runs", student("a", objective=[KD]), student("b", epochs=1)))
    return folder


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished / "runs", tmp_path / "runs")


def test_the_page_is_named_with_its_size(program: Program, runs: Path) -> None:
    ended = program("student", "report", runs)
    assert ended.code == 0
    assert ended.out.startswith(f"{runs}/report.html: 2 students, ")
    assert (runs / REPORT_FILE).read_bytes().startswith(b"<!DOCTYPE html>")
    assert ended.err == ""


def test_json_is_one_value(program: Program, runs: Path, tmp_path: Path) -> None:
    ended = program("student", "report", runs, "--out", tmp_path / "page.html", "--json")
    told = json.loads(ended.out)
    size = (tmp_path / "page.html").stat().st_size
    assert told == {
        "report": str(tmp_path / "page.html"),
        "students": 2,
        "bytes": size,
        "left_out": [],
        "exit_code": 0,
    }


def test_what_is_left_out_is_told(program: Program, runs: Path) -> None:
    (runs / "a" / PREDICTIONS_FILE).unlink()
    ended = program("student", "report", runs)
    assert ended.code == 0
    assert ended.err == "left out: in the leaderboard and the curves only, for they left no predictions: a\n"


def test_damaged_predictions_are_an_exit_code_for_schedulers(program: Program, runs: Path) -> None:
    (runs / "a" / PREDICTIONS_FILE).write_bytes(b"nothing")
    ended = program("student", "report", runs)
    assert (ended.code, (runs / REPORT_FILE).exists()) == (65, True)
    assert f"left out: a: {runs}/a/predictions.parquet holds no predictions" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "Missing argument"),
        (("RUNS", "RUNS"), 2, "unexpected extra argument"),
        (("nowhere",), 2, "there are no runs in"),
        (("empty",), 2, "there are no runs in"),
        (("RUNS/a/run.json",), 2, "name the folder that a student job calls `runs`"),
        (("RUNS/a",), 2, "is one run, not a folder of runs"),
        (("RUNS", "--cache", "nowhere"), 2, "is not a cache"),
        (("RUNS", "--cache", "other"), 2, "is not the cache of these runs"),
        (("RUNS", "--out", "empty"), 2, "is a folder"),
        (("RUNS", "--out", "RUNS/a/run.json/page.html"), 2, "cannot be written"),
        (("RUNS", "--out", "/proc/page.html"), 2, "cannot be written"),
    ],
)
def test_a_request_that_makes_no_sense_is_answered(
    program: Program, runs: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    (tmp_path / "empty").mkdir()
    write_cache(tmp_path / "other", Recipe(rows=10))
    given = [text.replace("RUNS", str(runs)) for text in arguments]
    given = [str(tmp_path / text) if text in ("nowhere", "empty", "other") else text for text in given]
    ended = program("student", "report", *given)
    assert ended.code == code
    assert told in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_report_loads_no_teacher_and_no_cluster(runs: Path) -> None:
    rooms = rooms_of("student", "report", runs)
    assert rooms & {"teacher_cache", "dask", "distributed", "sklearn"} == set()
    assert "jinja2" in rooms


@pytest.mark.slow
def test_training_loads_nothing_of_the_report(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        f'cache = "{finished}/cache"\nruns = "runs"\ntrain = "toy/train"\nvalidation = "toy/validation"\n'
        '[[student]]\nname = "s"\narchitecture = "mlp"\nobjective = [{ loss = "labels" }]\nepochs = 1\n'
    )
    assert rooms_of("student", "train", tmp_path / "job.toml") & {"jinja2", "matplotlib"} == set()
