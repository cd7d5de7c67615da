"""A second start while one runs: it ends with 75, or waits and computes nothing twice."""

from __future__ import annotations

import shutil
import threading
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
