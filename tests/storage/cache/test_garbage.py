"""What no commit names is deleted when it is old, by the clock that dates it; what one names never is."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.cache import Cache
from storage.cache.garbage import GRACE_S, delete_garbage, find_garbage
from storage.format.ledger import remember
from storage.format.objects import TEMPORARY_PREFIX, LocalObjects
from storage.format.shards import Commit, ShardKey
from tests.conftest import Program

TARGETS = ShardKey("digits", "cnn", "plain", 1)
LOST = f"{TARGETS.folder}/00001-0123abcd.zarr.zip"


def paths(cache: Cache) -> set[str]:
    return {info.path for info in cache.objects.walk()} | {info.path for info in cache.objects.leftovers()}


def make_older(cache: Cache, seconds: float) -> None:
    for info in [*cache.objects.walk(), *cache.objects.leftovers()]:
        os.utime(Path(cache.url) / info.path, (time.time() - seconds,) * 2)


@pytest.fixture
def dirty(cache: Cache) -> Cache:
    """Return a cache with a lost attempt beside a committed one, one of no commit at all, and a file half written."""
    for path in (LOST, "digits/ingest/00007-0123abcd.zarr.zip", "digits/ingest/00001-0123abcd.zarr/zarr.json"):
        cache.objects.put(path, b"12345")
    (Path(cache.url) / "digits" / f"{TEMPORARY_PREFIX}half").write_bytes(b"12")
    return cache


def test_old_garbage_goes_and_nothing_else(dirty: Cache) -> None:
    named = paths(dirty) - {
        LOST,
        "digits/ingest/00007-0123abcd.zarr.zip",
        "digits/ingest/00001-0123abcd.zarr/zarr.json",
        f"digits/{TEMPORARY_PREFIX}half",
    }
    make_older(dirty, GRACE_S + 60)
    found = find_garbage(dirty)
    deleted = delete_garbage(dirty, found.old)
    assert (sorted(waste.size_bytes for waste in deleted), found.young, paths(dirty)) == ([2, 5, 5, 5], (), named)


def test_what_is_younger_than_the_grace_stays(dirty: Cache) -> None:
    make_older(dirty, GRACE_S - 60)
    found = find_garbage(dirty)
    assert (found.old, len(found.young)) == ((), 4)


def test_age_is_by_the_clock_that_dates_objects(dirty: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead_s = 10 * GRACE_S  # this machine's clock, which would have everything deleted
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + ahead_s)
    assert find_garbage(dirty).old == ()
    monkeypatch.setattr(LocalObjects, "now_s", lambda self: time.time())
    assert len(find_garbage(dirty).old) == 4


def test_a_commit_that_came_since_keeps_its_attempt(
    cache: Cache, write_targets: Callable[..., Commit], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = cache.commit(TARGETS)
    data = cache.objects.get(TARGETS.commit_path)
    cache.objects.delete(TARGETS.commit_path)
    make_older(cache, GRACE_S + 60)
    (waste,) = find_garbage(cache).old
    cache.objects.create(TARGETS.commit_path, data)
    assert (waste.path, delete_garbage(cache, [waste])) == (commit.group, [])
    assert cache.objects.get(commit.group)


def test_of_a_commit_that_nobody_can_read_all_attempts_stay(dirty: Cache) -> None:
    (Path(dirty.url) / TARGETS.commit_path).write_bytes(b"")
    make_older(dirty, GRACE_S + 60)
    found = find_garbage(dirty)
    assert (found.unreadable, LOST in {waste.path for waste in found.old}) == ((TARGETS.commit_path,), False)


def test_ledger_files_of_which_others_know_all_go(cache: Cache) -> None:
    keys = [ShardKey("digits", teacher, "plain", shard) for teacher in (None, "cnn") for shard in range(3)]
    remember(cache.objects, keys, lambda commit: commit)
    folder = Path(cache.url) / "ledger"
    shutil.copy(folder / "00000000.parquet", folder / "00000007.parquet")  # a kill before the first was deleted
    (folder / "00000009.parquet").write_bytes(b"damaged")
    for path in folder.iterdir():  # not commits: a summary counts while its commit's date is the same
        os.utime(path, (time.time() - GRACE_S - 60,) * 2)
    deleted = delete_garbage(cache, find_garbage(cache).old)
    assert ([waste.kind for waste in deleted], len(list(folder.iterdir()))) == (["ledger file"] * 2, 1)
    assert (cache.catalogue().ledger().new, find_garbage(cache).old) == (0, ())


def test_gc_says_what_and_how_much(dirty: Cache, program: Program) -> None:
    make_older(dirty, 7200)
    before = paths(dirty)
    ended = program("cache", "gc", dirty.url, "--grace", "90m", "--dry-run")
    assert (ended.code, paths(dirty)) == (0, before)
    assert ended.out.splitlines()[-1] == "3 attempts, 1 temporary file (17 B) would be deleted"
    assert f"attempt  {LOST}" in ended.out
    assert program("cache", "gc", dirty.url).out.splitlines() == [
        "nothing to delete",
        "younger than 24h, and left: 3 attempts, 1 temporary file (17 B)",
    ]
    assert program("cache", "gc", dirty.url, "--grace", "1.5h").out == "3 attempts, 1 temporary file (17 B) deleted\n"
    assert len(before - paths(dirty)) == 4
    for grace in ("5m", "-1h", "soon"):
        assert program("cache", "gc", dirty.url, f"--grace={grace}").code == 2


def test_gc_works_on_an_object_store(cache: Cache, bucket: str) -> None:
    remote = Cache.create(bucket)
    for info in cache.objects.walk():
        remote.objects.put(info.path, cache.objects.get(info.path))
    remote.objects.put(LOST, b"12345")
    before = paths(remote)
    assert find_garbage(remote).old == ()
    delete_garbage(remote, find_garbage(remote, grace_s=-60).old)
    assert before - paths(remote) == {LOST}
