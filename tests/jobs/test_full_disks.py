"""Disks that are really full: of shards that are kept, of runs, of Dask's own files. Nothing is lost, and all is told.

A full disk of the cache itself: `tests/teacher_cache/test_faults.py`.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Program
from tests.jobs.test_keeping import JOB
from tests.student_train.toys import Recipe, write_cache
from tests.teacher_cache import test_faults
from tests.teacher_cache.test_faults import Finish, assert_whole, on, started

tiny_disk, whole, folder, finish = test_faults.tiny_disk, test_faults.whole, test_faults.folder, test_faults.finish
Disk = Callable[[str], Path]

KEEP = 'keep = "disk"\nkeep_bytes = 100_000_000'


def job_of(folder: Path, runs: str = "runs", keep: str = "") -> Path:
    """Return a job of a cache of six shards of 38 kB; its student has 200 kB of weights."""
    if not (folder / "cache").exists():
        write_cache(folder / "cache", Recipe(rows=300, shape=(3, 16, 16)))
    path = folder / "students.toml"
    path.write_text(JOB.format(cache="cache", hidden=64, runs=runs, keep=keep))
    return path


def weights(folder: Path, runs: str = "runs") -> bytes:
    return (folder / runs / "a" / "student.safetensors").read_bytes()


def fill(disk: Path) -> Path:
    """Leave no byte free on a disk; return the file that took them."""
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return disk / "filler"


def test_a_scratch_disk_that_is_full_keeps_what_it_has_and_training_goes_on_without(
    tmp_path: Path, program: Program, tiny_disk: Disk
) -> None:
    disk = tiny_disk("size=128k")
    assert program("student", "train", job_of(tmp_path, "plain")).code == 0
    ended = program("student", "train", job_of(tmp_path, keep=KEEP))
    told = " ".join(ended.err.split())
    assert (ended.code, weights(tmp_path)) == (0, weights(tmp_path, "plain")), ended.err
    assert "cannot be written (No space left on device); nothing more is kept" in told
    kept = list(disk.rglob("*.kept"))
    assert kept != []
    assert list(disk.rglob(".tmp-*")) == []
    again = program("student", "train", job_of(tmp_path, "again", keep=KEEP))  # what was kept is whole
    assert (again.code, weights(tmp_path, "again")) == (0, weights(tmp_path, "plain"))
    assert "damaged" not in again.err


def test_a_scratch_disk_without_a_free_byte_is_told(tmp_path: Path, program: Program, tiny_disk: Disk) -> None:
    fill(tiny_disk("size=64k"))
    assert program("student", "train", job_of(tmp_path, "plain")).code == 0
    ended = program("student", "train", job_of(tmp_path, keep=KEEP))
    assert (ended.code, weights(tmp_path)) == (0, weights(tmp_path, "plain")), ended.err
    assert "No space left on device" in " ".join(ended.err.split())


def test_runs_on_a_full_disk_are_named_and_the_same_command_goes_on_when_there_is_room(
    tmp_path: Path, program: Program, tiny_disk: Disk
) -> None:
    disk = tiny_disk("size=128k")
    assert program("student", "train", job_of(tmp_path, "plain")).code == 0
    job = job_of(tmp_path, "disk/runs")
    ended = program("student", "train", job)
    told = " ".join(ended.err.split())
    assert (ended.code, "Traceback" in told) == (1, False), ended.err
    assert "StorageFailure" in told
    assert "No space left on device" in told
    assert "disk/runs/" in told
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    ended = program("student", "train", job)
    assert (ended.code, weights(tmp_path, "disk/runs")) == (0, weights(tmp_path, "plain")), ended.err


@pytest.mark.slow
@pytest.mark.parametrize(("options", "code"), [("size=64k", 0), ("size=64k,nr_inodes=3", 2)])
def test_workers_whose_own_disk_is_full_do_without_or_are_told(
    folder: Path,
    whole: Path,
    finish: Finish,
    tiny_disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    code: int,
) -> None:
    """Nothing is spilled there: where workers can make their folders, they need no byte of it."""
    disk = tiny_disk(options)
    filler = fill(disk)
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(disk))
    monkeypatch.setenv("HURRY", "1")
    job = on(folder, 'kind = "local"\nworkers = 2')
    with started("cache", "build", job) as process:
        _, told = process.communicate(timeout=300)
    assert (process.returncode, "Traceback" in told) == (code, False), told
    if code:
        assert f"Dask's workers cannot write files of their own into {disk}" in told
        assert "No space left on device" in told
    filler.unlink()
    monkeypatch.delenv("DASK_TEMPORARY_DIRECTORY")
    finish(job)
    assert_whole(folder, whole)
