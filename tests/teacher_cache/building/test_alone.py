"""A second start while one runs: it ends with 75, or waits and computes nothing twice."""

from __future__ import annotations

import json
import os
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.cache import Cache, lease
from storage.cache.lease import hold
from tests.conftest import Program
from tests.teacher_cache.conftest import Built
from tests.teacher_cache.toys import build, contents


@pytest.fixture
def job(built: Built, tmp_path: Path) -> Path:
    """Return the job without its cache."""
    for name in ("toy.py", "toy.safetensors", "digits.npz", "job.toml"):
        shutil.copy2(built.folder / name, tmp_path / name)
    return tmp_path / "job.toml"


def test_a_second_start_ends_with_75_or_waits_and_nothing_is_computed_twice(
    built: Built, job: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 1.0)
    objects = Cache.create(str(job.parent / "cache")).objects
    held, may_end = threading.Event(), threading.Event()

    def first() -> None:
        with hold(objects, (0, 1), wait=False, note=print, do=""):
            held.set()
            assert may_end.wait(timeout=120)
            build(job)

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(timeout=60)
    refused = program("cache", "build", job, "--json")
    assert refused.code == 75
    assert '"error": "TryAgain"' in refused.out
    assert f"cache build {job} --wait" in refused.err
    assert program("cache", "build", job, "--partition", "1/2").code == 75
    assert program("cache", "recode", built.folder / "cache", job).code == 75
    assert not (job.parent / "cache/digits").exists()
    threading.Timer(0.5, may_end.set).start()
    waited = program("cache", "build", job, "--wait", "--json")
    thread.join()
    assert "waiting for its end: process" in waited.err
    assert (waited.code, '"built": 0' in waited.out, '"lost": 0' in waited.out) == (0, True, True), waited.out
    assert contents(job.parent / "cache") == contents(built.folder / "cache")
    assert not (job.parent / "cache/_lease").exists()


def test_nothing_missing_asks_for_no_lease(built: Built, job: Path, program: Program) -> None:
    shutil.copytree(built.folder / "cache", job.parent / "cache")
    with hold(Cache.open(str(job.parent / "cache")).objects, (0, 1), wait=False, note=print, do=""):
        assert program("cache", "build", job).code == 0


def test_what_another_built_since_the_job_was_looked_at_is_not_built_again(
    built: Built, job: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    from teacher_cache.building import alone

    take = alone.hold

    def late(*arguments: object, **options: object) -> object:
        build(job)  # between the look and the lease
        return take(*arguments, **options)

    monkeypatch.setattr(alone, "hold", late)
    ended = program("cache", "build", job, "--json")
    assert (ended.code, '"built": 0' in ended.out, '"lost": 0' in ended.out) == (0, True, True), ended.out


def test_the_status_says_who_builds_and_of_one_that_is_gone_that_nobody_does(
    built: Built, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = shutil.copytree(built.folder / "cache", tmp_path / "cache")
    objects = Cache.open(str(cache)).objects
    assert json.loads(program("cache", "status", cache, "--json").out)["builders"] == []
    with hold(objects, (1, 2), wait=False, note=print, do=""):
        (path,) = (cache / "_lease").iterdir()
        told, said = program("cache", "status", cache), program("cache", "status", cache, "--json")
        lines = " ".join(told.out.split())
        assert (told.code, f"being built by process {os.getpid()} on " in lines, "(part 1/2)" in lines) == (
            0,
            True,
            True,
        )
        (builder,) = json.loads(said.out)["builders"]
        assert (builder["part"], builder["pid"], builder["alive"]) == ("1/2", os.getpid(), True)
        assert builder["renewed"] == datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
        lost = path.read_bytes()
        monkeypatch.setattr(lease, "place", lambda: None)  # as from another host
        lines = " ".join(program("cache", "status", cache).out.split())
        assert f"unless it is gone: its lease was renewed at {builder['renewed']}" in lines
        monkeypatch.undo()
    path.parent.mkdir()
    path.write_bytes(lost)
    assert "nobody builds it: process" in program("cache", "status", cache).out
    path.write_bytes(b"{")
    assert "a lease that cannot be read, written at" in program("cache", "status", cache).out
    assert path.read_bytes() == b"{"
