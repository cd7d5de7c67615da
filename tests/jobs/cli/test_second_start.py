"""A second `student train` of one job while the first runs: it ends with 75, or waits and trains nothing twice."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from storage.errors import Interrupted
from student_train.run_files.locks import job_locked
from tests.conftest import Program


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_second_start_ends_with_75_or_waits_and_then_finds_nothing_to_do(
    kitchen: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(kitchen / "cache", tmp_path / "cache")
    job, runs = tmp_path / "students.toml", tmp_path / "runs"
    job.write_text((kitchen / "students.toml").read_text())
    held, may_end = threading.Event(), threading.Event()

    def first() -> None:
        with job_locked(runs, ["s"], wait=False, note=print, stop=lambda: False):
            held.set()
            assert may_end.wait(timeout=120)

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(timeout=60)
    refused = program("student", "train", job)
    assert (refused.code, (runs / "s").exists()) == (75, False)
    assert "TryAgain: another process is training s of " in refused.err
    assert "found     process " in refused.err
    assert "(--wait)" in refused.err
    monkeypatch.setattr("student_train.run_files.locks.LOOK_EVERY_S", 0.1)
    threading.Timer(0.5, may_end.set).start()
    waited = program("student", "train", job, "--wait")
    thread.join()
    assert (waited.code, waited.err.count("waiting for its end: process ")) == (0, 1), waited.err
    before = contents(runs)
    again = program("student", "train", job, "--wait")
    assert (again.code, "finished before, skipped" in again.err, contents(runs)) == (0, True, before)


def test_who_waits_can_be_stopped(tmp_path: Path) -> None:
    def waiting() -> None:
        with job_locked(tmp_path, ["a", "b"], wait=True, note=print, stop=lambda: True):
            pass

    with job_locked(tmp_path, ["b", "a"], wait=False, note=print, stop=lambda: False), pytest.raises(Interrupted):
        waiting()
    with job_locked(tmp_path, ["a"], wait=False, note=print, stop=lambda: False):  # another job
        waiting()


def test_a_job_leaves_no_lock_behind_and_one_that_is_gone_is_not_held(tmp_path: Path) -> None:
    with job_locked(tmp_path, ["a"], wait=False, note=print, stop=lambda: False):
        (path,) = tmp_path.iterdir()
        path.unlink()  # as its holder does at its end; whoever had opened it before holds nothing
        path.write_text("")
        with job_locked(tmp_path, ["a"], wait=False, note=print, stop=lambda: False):
            pass
    assert list(tmp_path.iterdir()) == []
