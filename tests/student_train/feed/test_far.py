"""Shards of a store that is far away: fetched ahead of their readers, as many as memory was promised for."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from storage.cache import Cache
from storage.errors import StaleCache
from storage.format.objects import LocalObjects
from storage.format.stores.base import AHEAD_BYTES, MOST_AHEAD, most_ahead, num_ahead
from student_train.feed.feed import Feed
from student_train.feed.residency import FeedPool, Residency, largest_shard
from student_train.feed.selection import join_selections, select_rows
from student_train.feed.windows import READERS
from student_train.preparing.weighing.feed_memory import FedRows, feed_bytes
from tests.student_train.feed.test_domains import BOTH, CODE, LAW, needs_of
from tests.student_train.feed.test_feed import ALL, CPU, assert_same, feed_of
from tests.student_train.feed.test_residency import held
from tests.student_train.feed.test_sending import feed_threads
from tests.student_train.toys import Recipe, add_teacher, write_cache


class Far(LocalObjects):
    """A folder that answers after a while.

    Attributes:
        most: requests that travelled at a time.
        fetched: shards whose arrays were asked for.
    """

    latency_s = 0.02

    def __init__(self, root: str):
        super().__init__(root)
        self.most = self.travelling = 0
        self.fetched: list[str] = []
        self._lock = Lock()

    def get(self, path: str, most_bytes: int | None = None) -> bytes:
        self.travel()
        return super().get(path, most_bytes)

    def get_ranges(self, path: str, spans: Any) -> list[bytes]:
        self.fetched.append(path)
        self.travel()
        return super().get_ranges(path, spans)

    def travel(self) -> None:
        with self._lock:
            self.travelling += 1
            self.most = max(self.most, self.travelling)
        time.sleep(self.latency_s)
        with self._lock:
            self.travelling -= 1


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return a cache of 24 shards."""
    return write_cache(tmp_path_factory.mktemp("near"), Recipe(rows=24 * 50))


def far_of(near: Cache) -> tuple[Cache, Far]:
    objects = Far(near.url)
    return Cache(objects, near.spec), objects


def test_what_was_fetched_ahead_is_what_is_read(near: Cache) -> None:
    far, objects = far_of(near)
    for window_shards in (1, 3):
        kept, streamed = (feed_of(at, place="stream", window_shards=window_shards) for at in (near, far))
        objects.most = 0  # without those that looked at the samples
        assert_same(list(kept.shuffled(16, seed=0, epoch=1)), list(streamed.shuffled(16, seed=0, epoch=1)))
    assert 2 * READERS < objects.most <= 2 * (num_ahead(0.02, 1) + 1), "commits and arrays, of two stages"


def test_an_epoch_is_as_long_as_its_round_trips_side_by_side(near: Cache) -> None:
    far, _ = far_of(near)
    streamed = feed_of(far, place="stream", window_shards=1)
    began = time.perf_counter()
    list(streamed.shuffled(50, seed=0, epoch=0))
    one_by_one_s = 24 * 4 * Far.latency_s  # a window is one shard, of four requests
    assert time.perf_counter() - began < one_by_one_s / 2


def test_rows_that_are_loaded_whole_are_fetched_ahead_too(near: Cache) -> None:
    far, objects = far_of(near)
    selection = select_rows(far.samples(), "toy/train", ALL)
    objects.most = 0
    FeedPool(far, CPU, place="device", window_shards=2).feed(selection, ALL)
    assert objects.most > 2 * READERS


def test_large_shards_are_not_fetched_ahead(near: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.format.stores.base.AHEAD_BYTES", 1000)
    far, objects = far_of(near)
    feed = feed_of(far, place="stream")
    objects.most = 0
    list(feed.shuffled(16, seed=0, epoch=0))
    assert 0 < objects.most <= READERS


def test_no_more_are_fetched_than_memory_was_promised_for(near: Cache) -> None:
    far, objects = far_of(near)
    batches = feed_of(far, place="stream", window_shards=1).shuffled(16, seed=0, epoch=0)
    objects.fetched.clear()  # a feature's shape was asked for
    next(batches)
    time.sleep(0.5)  # nobody asks for more
    assert len(objects.fetched) == 2 * (2 + num_ahead(0.02, 1)), "two windows, and what is ahead, of two stages"
    batches.close()  # type: ignore[attr-defined]
    assert feed_threads() == []


def test_what_is_ahead_is_counted_where_the_store_is_far(near: Cache) -> None:
    far, _ = far_of(near)
    one = sum(largest_shard(select_rows(near.samples(), "toy/train", ALL), ALL))
    reading = "shards being read"
    assert held(far, "stream")[reading] - held(near, "stream")[reading] == 24 * one
    assert most_ahead(AHEAD_BYTES // 5) == 5
    assert most_ahead(10) == MOST_AHEAD
    for latency_s in (0.0, 1e-4, 0.02, 3.0, float("inf")):
        assert num_ahead(latency_s, AHEAD_BYTES // 5) <= 5


def test_two_names_of_one_teacher_are_each_fetched(tmp_path: Path) -> None:
    for recipe in (LAW, CODE):
        near = write_cache(tmp_path, recipe)
        add_teacher(near, replace(recipe, teacher_name="coder" if recipe is LAW else "lawyer"))
    far, _ = far_of(near)
    needs = needs_of("coder") | needs_of(BOTH)  # in one pass, a student of each: of code both mean the same
    selection = join_selections([select_rows(near.samples(), rows, needs) for rows in ("law/train", "code/train")])
    kept, streamed = (
        list(FeedPool(at, CPU, place="stream", window_shards=2).feed(selection, needs).shuffled(16, seed=0, epoch=0))
        for at in (near, far)
    )
    assert_same(kept, streamed)


def test_two_streams_at_a_time_are_counted_both(near: Cache) -> None:
    far, _ = far_of(near)
    selection = select_rows(far.samples(), "toy/train", ALL)
    rows = FedRows(selection, ALL, 2, batch_size=32)
    after, within = (
        feed_bytes([rows, rows], Residency("stream", 0, ""), CPU, held_within=held).host for held in (None, 1)
    )
    assert within["shards being read"] == 2 * after["shards being read"]


def test_a_fault_of_a_shard_that_was_fetched_ahead_is_told_when_it_is_read(tmp_path: Path) -> None:
    near = write_cache(tmp_path, Recipe(rows=8 * 50, other_inputs=frozenset({3})))
    far, _ = far_of(near)

    def loaded() -> Feed:
        return feed_of(far, place="device")

    for read in (loaded, lambda: list(feed_of(far, place="stream", window_shards=1).shuffled(16, seed=0, epoch=0))):
        with pytest.raises(StaleCache, match="toy/sage/plain/00003"):
            read()
        assert feed_threads() == []


def test_whoever_stops_waits_for_what_travels_alone(near: Cache) -> None:
    far, objects = far_of(near)

    class Stop(Exception):
        pass

    def tick(done: int, shards: int) -> None:
        raise Stop

    selection = select_rows(near.samples(), "toy/train", ALL)
    with pytest.raises(Stop):
        FeedPool(far, CPU, place="device", window_shards=1).feed(selection, ALL, tick)
    assert feed_threads() == []
    assert len(set(objects.fetched)) < 2 * 24
