"""A build into an object store that loses answers, and one into a store that stops to answer."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from storage.cache import Cache
from storage.cache.verify import verify
from storage.format.objects import open_objects
from storage.format.stores import asking
from tests.conftest import Program
from tests.faulty_store import FaultyStore
from tests.teacher_cache.toys import contents, teacher_section, write_digits, write_job, write_teacher

pytestmark = pytest.mark.slow

SHARDS, ROWS_PER_SHARD = 6, 8


@pytest.fixture
def jobs(tmp_path: Path, bucket: str, faulty: FaultyStore) -> tuple[Path, Path]:
    """Return a job whose cache is in the store, and the same one with a folder."""
    write_teacher(tmp_path)
    sections = (write_digits(tmp_path, SHARDS * ROWS_PER_SHARD, rows_per_shard=ROWS_PER_SHARD), teacher_section())
    in_folder = shutil.copy(write_job(tmp_path, *sections), tmp_path / "folder.toml")
    return write_job(tmp_path, *sections, cache=bucket), Path(in_folder)


@pytest.mark.parametrize("fault", ["lose", "cut", "drop"])
def test_a_build_whose_every_third_answer_is_lost_ends_in_the_same_cache(
    jobs: tuple[Path, Path], bucket: str, faulty: FaultyStore, program: Program, fault: str
) -> None:
    count = itertools.count()
    faulty.will(fault, times=10**6, strikes=lambda method, path: next(count) % 3 == 2)
    for job in jobs:
        ended = program("cache", "build", job)
        assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
    assert next(count) > 3 * 4 * SHARDS
    assert contents(bucket) == contents(jobs[1].parent / "cache")
    found = verify(Cache.open(bucket))
    assert (found.bad, found.garbage) == ((), ())


@pytest.mark.parametrize("verb", ["PUT", "GET"])
def test_a_store_that_stops_to_answer_is_exit_75_and_the_same_command_resumes(
    jobs: tuple[Path, Path],
    bucket: str,
    faulty: FaultyStore,
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 0.5)
    count = itertools.count()
    faulty.will("503", times=10**6, strikes=lambda method, path: method == verb and next(count) > 12)
    ended = program("cache", "build", jobs[0])
    assert (ended.code, "Traceback" in ended.err) == (75, False), ended.err
    assert f"{bucket}/" in ended.err
    assert "run the same command again" in ended.err
    faulty.times = 0
    assert program("cache", "build", jobs[0]).code == 0
    assert program("cache", "build", jobs[1]).code == 0
    assert contents(bucket) == contents(jobs[1].parent / "cache")


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ("404 NoSuchBucket", 2, "or make the bucket with your store's own tools"),
        ("403 AccessDenied", 2, "check the address and the credentials in the environment"),
        ("deaf", 2, "conditional writes"),
    ],
    ids=["not there", "read-only", "lies about conditions"],
)
def test_a_bucket_that_cannot_hold_a_cache_is_told_before_anything_is_computed(
    jobs: tuple[Path, Path], bucket: str, faulty: FaultyStore, program: Program, fault: str, code: int, told: str
) -> None:
    faulty.will(fault, times=10**6, strikes=lambda method, path: method == "PUT" or fault.startswith("404"))
    ended = program("cache", "build", jobs[0])
    assert (ended.code, "Traceback" in ended.err, bucket in ended.err) == (code, False, True), ended.err
    assert told in ended.err
    faulty.times = 0
    assert [info.path for info in open_objects(bucket).walk() if "/" in info.path] == []
    assert program("cache", "build", jobs[0]).code == 0
