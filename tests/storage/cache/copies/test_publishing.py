"""A published cache is read in place over HTTP as from a folder; nothing is written to it, and a change is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage.cache import Cache
from storage.cache.copies.copy import copy_cache
from storage.cache.copies.publishing import publish
from storage.cache.verify import verify
from storage.errors import BadRequest, CorruptObject, MissingObject, NotInCache
from storage.format.shards import Commit, ShardKey
from storage.format.stores.index import INDEX
from tests.conftest import Program
from tests.teacher_cache.toys import Silent
from tests.web import WithoutParts, WithParts, serve

TARGETS = ShardKey("digits", "cnn", "plain", 1)


@pytest.mark.parametrize("server", [WithParts, WithoutParts])
def test_a_published_cache_is_read_in_place(cache: Cache, server: type[WithoutParts], tmp_path: Path) -> None:
    publish(cache, Silent())
    with serve(Path(cache.url).parent, server) as (address, requests):
        there = Cache.open(f"{address}/cache")
        mine, theirs = cache.catalogue(), there.catalogue()
        assert {stage: list(found) for stage, found in theirs.commits.items()} == {
            stage: list(found) for stage, found in mine.commits.items()
        }
        assert (theirs.datasets, theirs.teachers, list(theirs.shards("digits"))) == (
            mine.datasets,
            mine.teachers,
            list(mine.shards("digits")),
        )
        assert np.array_equal(there.read_inputs("digits", 1), cache.read_inputs("digits", 1))
        (logits_SC,) = there.read_targets("digits", "cnn", 1).values()
        assert np.array_equal(logits_SC, *cache.read_targets("digits", "cnn", 1).values())
        before = len(requests)
        assert theirs.ledger().new == 0  # whose summaries are of the versions that were published
        assert sum(".parquet" in line for line in requests[before:]) == 1
        assert (verify(there).bad, there.notice) == ((), None)
        copy_cache(there, str(tmp_path / "mine"), Silent())
        assert verify(Cache.open(str(tmp_path / "mine"))).shards == 6


def test_what_was_built_since_is_seen_when_it_is_published_again(
    cache: Cache, write_targets: Callable[..., Commit]
) -> None:
    commit, data = cache.commit(TARGETS), cache.objects.get(TARGETS.commit_path)
    cache.objects.delete(TARGETS.commit_path)
    publish(cache, Silent())
    with serve(Path(cache.url)) as (address, _):
        reader = Cache.open(address)
        assert reader.committed("digits", "cnn") == {0, 2}
        cache.objects.create(commit.key.commit_path, data)
        assert reader.committed("digits", "cnn") == {0, 2}
        publish(cache, Silent())
        assert Cache.open(address).committed("digits", "cnn") == {0, 1, 2}


def test_what_is_changed_after_it_was_published_is_refused(cache: Cache) -> None:
    publish(cache, Silent())
    path = Path(cache.url) / "digits/dataset.json"
    path.write_text(path.read_text().replace('"zero"', '"nought"'))
    group = Path(cache.url) / cache.objects.list(TARGETS.folder).objects[0].path
    with serve(Path(cache.url)) as (address, _):
        there = Cache.open(address)
        with pytest.raises(CorruptObject) as caught:
            there.dataset("digits")
        assert caught.value.what == f"{address}/digits/dataset.json is not what was published"
        with pytest.raises(MissingObject):
            there.objects.get("digits/nothing.json")
    assert group.exists()


def test_an_index_that_is_damaged_or_not_there_is_told(cache: Cache) -> None:
    with serve(Path(cache.url)) as (address, _):
        with pytest.raises(NotInCache) as caught:
            Cache.open(address)
        assert (caught.value.what, caught.value.do) == (
            f"{address} cannot be read as a cache",
            "whoever publishes it: cache publish CACHE",
        )
        publish(cache, Silent())
        data = cache.objects.get(INDEX)
        cache.objects.put(INDEX, data[:100] + b"x" + data[101:])
        with pytest.raises(CorruptObject):
            Cache.open(address)


def test_a_damaged_cache_is_not_published(cache: Cache) -> None:
    (Path(cache.url) / TARGETS.commit_path).write_bytes(b"")
    with pytest.raises(CorruptObject):
        publish(cache, Silent())
    assert not (Path(cache.url) / INDEX).exists()


def test_nothing_is_written_over_http(cache: Cache, program: Program, tmp_path: Path) -> None:
    publish(cache, Silent())
    with serve(Path(cache.url)) as (address, requests):
        for command in (
            ["gc", address],
            ["publish", address],
            ["copy", cache.url, address],
            ["verify", address, "--repair"],
        ):
            ended = program("cache", *command)
            assert (ended.code, "read in place, over HTTP" in ended.err) == (2, True), (command, ended)
        with pytest.raises(BadRequest):
            Cache.create(address)
        for command in (["info", address], ["query", address, "SELECT count(*) FROM samples"]):
            assert program("cache", *command).code == 0
    assert {line.split()[0] for line in requests} <= {"GET", "HEAD"}


def test_a_notice_is_shown_and_goes_along(cache: Cache, program: Program, tmp_path: Path) -> None:
    notice = tmp_path / "notice.txt"
    notice.write_text("For research only.\nAsk first: \x1b[31mme\n")
    ended = program("cache", "copy", cache.url, tmp_path / "copy", "--notice", notice)
    assert (ended.code, Cache.open(str(tmp_path / "copy")).notice) == (0, "For research only.\nAsk first: \x1b[31mme")
    for command in ("info", "status"):
        shown = program("cache", command, tmp_path / "copy").out
        assert shown.endswith("For research only.\nAsk first: \\x1b[31mme\n")
    shutil.rmtree(tmp_path / "copy" / "digits")
    assert program("cache", "copy", tmp_path / "copy", tmp_path / "third").code == 0
    assert Cache.open(str(tmp_path / "third")).notice == Cache.open(str(tmp_path / "copy")).notice
    notice.write_text("Do what you like.")
    assert program("cache", "publish", tmp_path / "copy", "--notice", notice).code == 2
    for path in (tmp_path / "absent", tmp_path, "/dev/zero"):
        assert program("cache", "publish", tmp_path / "copy", "--notice", path).code == 2
    notice.write_bytes(b" \n")
    assert program("cache", "publish", tmp_path / "copy", "--notice", notice).code == 2
