"""A student in a bucket, and samples there: as from a disk, for one copy of each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from storage.format.objects import RemoteObjects
from tests.conftest import Program
from tests.student_train.using.toys import write_pictures


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLROOM_SOURCES", str(tmp_path / "copies"))
    return tmp_path / "copies"


def put(bucket: str, folder: Path, below: str) -> str:
    """Put the files of a folder into the bucket; return their address."""
    store = RemoteObjects(bucket)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            store.put(f"{below}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"{bucket}/{below}"


def test_a_run_and_a_folder_in_a_bucket_are_as_on_a_disk(
    program: Program, run: Path, bucket: str, tmp_path: Path, copies: Path
) -> None:
    write_pictures(tmp_path / "new", ("red", "blue"), 4, seed=5)
    there, new = put(bucket, run, "runs/small"), put(bucket, tmp_path / "new", "new")
    RemoteObjects(bucket).put("runs/small/checkpoint/large.bin", b"0" * 1000)
    for command in ("eval", "predict"):
        ended = program("student", command, there, new, "--json")
        assert ended.code == 0, ended.err
        here = program("student", command, run, tmp_path / "new", "--json")
        found, expected = json.loads(ended.out), json.loads(here.out)
        assert (found.pop("inputs", None) or found.pop("measured_on")) == f"8 {told(command)} of {new}"
        assert found.pop("notes")[: len(expected["notes"])] or command == "predict"
        for each in (expected, found):
            each.pop("inputs", None)
            each.pop("measured_on", None)
            each.pop("notes", None)
        assert found == expected
    assert not list(copies.rglob("large.bin"))  # of a run only its own files
    ended = program("student", "export", there, "--format", "safetensors", "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "copied to this machine" not in ended.err  # the second time nothing is


def test_runs_in_a_bucket_are_compared_and_reported_as_from_a_disk(
    program: Program, run: Path, bucket: str, tmp_path: Path, copies: Path
) -> None:
    there = put(bucket, run.parent, "runs")
    RemoteObjects(bucket).put("runs/small/checkpoint/large.bin", b"0" * 1000)
    found, expected = (json.loads(program("student", "compare", at, "--json").out) for at in (there, run.parent))
    assert (found.pop("runs"), expected.pop("runs")) == (there, str(run.parent))
    assert found == expected
    assert found["students"]
    pages = {}
    for at in (there, run.parent):
        ended = program("student", "report", at, "--out", tmp_path / "page.html")
        assert ended.code == 0, ended.err
        pages[at] = (tmp_path / "page.html").read_text()
    assert f"<title>Students of {there}</title>" in pages[there]
    assert str(copies) not in pages[there]
    told = {page.replace(there, "RUNS").replace(str(run.parent), "RUNS") for page in pages.values()}
    assert len(told) == 1  # the job in it names the folder of the training in both
    assert not list(copies.rglob("large.bin"))
    assert program("student", "compare", there).out.startswith(f"{there}: 1 student")
    for at, out, what in (
        (there, (), f"the page about {there} is written to a disk of this machine"),
        (f"{there}/small", ("--out", tmp_path / "b.html"), f"{there}/small is one run, not a folder of runs"),
        (f"{bucket}/none", ("--out", tmp_path / "b.html"), f"there is nothing at {bucket}/none"),
    ):
        said = json.loads(program("student", "report", at, *out, "--json").out)
        assert (said["what"], said["exit_code"]) == (what, 2), said


def told(command: str) -> str:
    return {"eval": "samples", "predict": "images"}[command]


def test_what_is_no_student_in_a_bucket_and_what_cannot_be_written_there_are_told(
    program: Program, run: Path, bucket: str, tmp_path: Path
) -> None:
    put(bucket, run, "runs/small")
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 8, 8), np.uint8))
    for address, what in ((f"{bucket}/runs", "there is no trained student"), ("https://a.org/r", "cannot be read")):
        said = json.loads(program("student", "predict", address, tmp_path / "a.npy", "--json").out)
        assert what in said["what"], said
        assert said["exit_code"] == 2
    said = json.loads(program("student", "predict", run, tmp_path / "a.npy", "-o", f"{bucket}/a.csv", "--json").out)
    assert (said["what"][:50], said["do"]) == (
        "predictions are written to a disk of this machine,", "copy the file there"
    )  # fmt: skip
    said = json.loads(program("student", "eval", run, f"{bucket}/none", "--cache", f"{bucket}/c", "--json").out)
    assert said["what"] == "rows of a cache have a name, and no address"
    said = json.loads(program("student", "eval", run, f"{bucket}/none", "--json").out)
    assert said["what"] == f"there is nothing at {bucket}/none"
