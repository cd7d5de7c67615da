from __future__ import annotations

import gc
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.errors import CorruptObject, StaleCache
from storage.format.objects import open_objects
from storage.format.shards import ShardKey
from storage.views import PLAIN
from student_train.feed.batches import ArrayKey
from student_train.feed.order import Window, epoch_windows
from student_train.feed.selection import select_rows
from student_train.feed.shard_source import INPUTS, ShardSource
from student_train.feed.spans import NARROW_BYTES, Span
from student_train.feed.windows import Block, Coming, load, read_windows
from tests.student_train.feed.test_feed import ALL, CPU, assert_same, feed_of
from tests.student_train.feed.test_sending import feed_threads
from tests.student_train.toys import Recipe, write_cache


def source_of(cache: Cache) -> ShardSource:
    return ShardSource(cache, select_rows(cache.samples(), "toy/train", ALL))


def windows_of(source: ShardSource, window_shards: int) -> list[Window]:
    return epoch_windows(source.selection.shard_sizes_S, seed=0, epoch=0, window_shards=window_shards)


def test_rows_stay_in_their_stored_type(toy_cache: Cache) -> None:
    arrays = load(source_of(toy_cache), frozenset({INPUTS, ArrayKey("sage", "logits")}), CPU)
    assert {str(name): values.dtype for name, values in arrays.items()} == {
        "inputs": torch.uint8,
        "sage/logits": torch.float16,
    }


def test_rows_lie_in_dataset_order_whichever_shard_comes_first(
    toy_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = np.concatenate([toy_cache.read_inputs("toy", shard) for shard in range(5)])
    train = np.arange(240) % 5 != 4
    read = ShardSource.reading

    def last_first(self: ShardSource, index: int, names: object) -> object:
        time.sleep(0.05 * (5 - index))
        return read(self, index, names)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardSource, "reading", last_first)
    arrays = load(source_of(toy_cache), frozenset({INPUTS}), CPU)
    assert torch.equal(arrays[INPUTS], torch.from_numpy(stored[train]))


def test_a_stream_holds_two_windows_and_no_more(toy_cache: Cache) -> None:
    source = source_of(toy_cache)
    gc.collect()  # what the errors of other tests have left
    most = 0
    for _ in read_windows(source, windows_of(source, 1), source.names(ALL)):
        time.sleep(0.05)  # long enough for the next window to be read
        blocks = [each for each in gc.get_objects() if type(each) is Block]
        most = max(most, sum(len(block.arrays[INPUTS]) for block in blocks if block.arrays))
    assert most == 2 * 40


def test_a_window_stays_as_it_is_while_the_next_is_read(toy_cache: Cache) -> None:
    kept = list(feed_of(toy_cache, place="device", window_shards=1).shuffled(16, seed=0, epoch=0))
    slow = []
    for batch in feed_of(toy_cache, place="stream", window_shards=1).shuffled(16, seed=0, epoch=0):
        time.sleep(0.02)
        slow.append(batch)
    assert_same(kept, slow)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_whoever_stops_early_leaves_no_thread(toy_cache: Cache, steps: int) -> None:
    batches = feed_of(toy_cache, place="stream", window_shards=1).shuffled(16, seed=0, epoch=0)
    for _ in range(steps):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert feed_threads() == []


def test_a_pass_to_its_end_leaves_no_thread(toy_cache: Cache) -> None:
    list(feed_of(toy_cache, place="stream").shuffled(16, seed=0, epoch=0))
    assert feed_threads() == []


def test_an_error_of_a_reader_leaves_no_thread(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(other_inputs=frozenset({3})))
    source = source_of(cache)
    for read in (
        lambda: list(read_windows(source, windows_of(source, 2), source.names(ALL))),
        lambda: load(source, source.names(ALL), CPU),
    ):
        with pytest.raises(StaleCache, match="toy/sage/plain/00003"):
            read()
        assert feed_threads() == []


def test_whoever_stops_while_rows_are_loaded_waits_only_for_those_that_are_being_read(toy_cache: Cache) -> None:
    class Stop(Exception):
        pass

    def tick(done: int, shards: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        load(source_of(toy_cache), frozenset({INPUTS}), CPU, tick)
    assert feed_threads() == []


def test_a_shard_of_another_type_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Another program wrote it, with digests that are right."""
    cache = write_cache(tmp_path, Recipe(features={}))
    other = write_cache(tmp_path / "other", Recipe(features={}, logits_dtype="fp32"))
    for info in list(cache.objects.walk("toy/sage/plain")):
        if "/00004" in info.path:
            cache.objects.delete(info.path)
    commit = other.commit(ShardKey("toy", "sage", PLAIN, 4), with_table=True)
    cache.copy_shard(other, commit, commit.about)  # which says that it belongs here
    source = source_of(cache)
    block = Block(192, CPU)
    names = frozenset({ArrayKey("sage", "logits")})
    coming = Coming(source, names, [0, 4])
    block.fill(coming, 0, 0)
    with pytest.raises(CorruptObject) as caught:
        block.fill(coming, 1, 40)
    assert (caught.value.what, caught.value.found, caught.value.expected) == (
        "toy/sage/plain/00004: logits is not what is promised",
        "float32 (40, 4)",
        "40 rows of float16 (4,)  (toy/sage/teacher.json)",
    )


def test_a_shard_of_too_few_rows_is_an_error_that_names_it(toy_cache: Cache) -> None:
    source = source_of(toy_cache)
    rows = (*source.selection.rows[:4], source.selection.rows[4] + 10)
    beyond = ShardSource(toy_cache, replace(source.selection, rows=rows))
    with pytest.raises(CorruptObject, match="toy/ingest/00004: inputs is not as in others"):
        load(beyond, frozenset({INPUTS}), CPU)


@pytest.mark.slow
def test_rows_are_streamed_from_an_object_store(toy_cache: Cache, bucket: str) -> None:
    remote = open_objects(bucket)
    for info in toy_cache.objects.walk():
        remote.put(info.path, toy_cache.objects.get(info.path))
    streamed = feed_of(Cache.open(bucket), place="stream").shuffled(32, seed=0, epoch=0)
    assert_same(list(streamed), list(feed_of(toy_cache, place="device").shuffled(32, seed=0, epoch=0)))


def test_a_stream_takes_the_rows_that_torch_would(toy_cache: Cache) -> None:
    arrays = load(source_of(toy_cache), frozenset({INPUTS, ArrayKey("sage", "logits")}), CPU)
    places_P = torch.randperm(192)[:100]
    picked = [
        Span.of(0, places_P, arrays, arrays, {}, streamed=streamed).pick(7, 90, arrays) for streamed in (False, True)
    ]
    for name in arrays:
        assert picked[1][name].dtype == picked[0][name].dtype
        assert torch.equal(picked[1][name], picked[0][name])


def test_a_stream_leaves_the_threads_of_torch_to_the_students(
    toy_cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[int] = []
    index_select = torch.Tensor.index_select

    def noted(self: torch.Tensor, axis: int, places: torch.Tensor) -> torch.Tensor:
        gathered.append(self[:1].nbytes)
        return index_select(self, axis, places)

    monkeypatch.setattr(torch.Tensor, "index_select", noted)
    rows = sum(len(batch.shown) for batch in feed_of(toy_cache, place="stream").shuffled(32, seed=0, epoch=0))
    assert rows == 192
    assert max(gathered) <= NARROW_BYTES  # of a row: too little for more than one thread
