from __future__ import annotations

from pathlib import Path

import pytest
import torch

from storage.cache import Cache
from storage.errors import BadRequest
from student_train.feed.batches import Needs
from student_train.feed.order import epoch_windows
from student_train.feed.residency import (
    FeedPool,
    Place,
    Residency,
    choose_place,
    choose_residency,
    projected_bytes,
    row_bytes,
)
from student_train.feed.selection import select_rows
from student_train.feed.sending import AHEAD
from student_train.feed.shard_source import ShardSource
from student_train.feed.windows import READERS, load, read_windows
from student_train.preparing.weighing.feed_memory import READ_COPIES, FedRows, feed_bytes
from tests.student_train.feed.test_feed import ALL, CPU, SOFT
from tests.student_train.toys import Recipe, write_cache


def test_students_with_the_same_needs_share_their_rows(toy_cache: Cache) -> None:
    pool = FeedPool(toy_cache, CPU, place="device", window_shards=2)
    selection = select_rows(toy_cache.samples(), "toy/train", ALL)
    ticks: list[tuple[int, int]] = []
    for needs in (Needs(labels=True), SOFT, SOFT):
        pool.feed(selection, needs, lambda done, shards: ticks.append((done, shards)))
    assert ticks == [(i, 5) for i in range(1, 6)] * 2  # inputs, then logits, then nothing


def test_an_array_that_two_students_need_counts_once(toy_cache: Cache) -> None:
    selection = select_rows(toy_cache.samples(), "toy/train", ALL)
    labels, taught = Needs(labels=True), SOFT
    both = projected_bytes([(selection, labels), (selection, taught)])
    assert both == 192 * (36 + 4 * 2) == 192 * row_bytes(toy_cache.catalogue(), "toy", taught)


def test_the_projected_bytes_are_those_that_are_loaded(toy_cache: Cache) -> None:
    selection = select_rows(toy_cache.samples(), "toy/train", ALL)
    source = ShardSource(toy_cache, selection)
    arrays = load(source, source.names(ALL), CPU)
    assert sum(values.nbytes for values in arrays.values()) == projected_bytes([(selection, ALL)])


@pytest.mark.parametrize(
    ("free", "place"),
    [
        ({"device": 100, "host": 100}, "device"),
        ({"device": 99, "host": 100}, "host"),
        ({"device": 99, "host": 99}, "stream"),
        ({"device": 100}, "device"),
        ({"device": 99}, "stream"),
    ],
)
def test_rows_are_kept_where_they_take_half_of_the_free_memory(free: dict[str, int], place: Place) -> None:
    assert choose_place("auto", 50, free).place == place


@pytest.mark.parametrize("asked", ["device", "host", "stream"])
def test_the_job_may_name_the_residency(asked: Place) -> None:
    assert choose_place(asked, 50, {"device": 50, "host": 50}).place == asked


def test_the_host_is_the_device_of_a_cpu() -> None:
    assert choose_residency("host", 10, CPU).place == "device"


@pytest.mark.parametrize("asked", ["device", "host"])
def test_rows_that_cannot_fit_are_refused(asked: Place) -> None:
    with pytest.raises(BadRequest) as caught:
        choose_place(asked, 2**31, {"device": 2**30, "host": 2**30})
    assert str(caught.value) == (
        f"BadRequest: the rows do not fit on the {asked}\n"
        "  found     2.0 GiB of rows, free: device 1.0 GiB, host 1.0 GiB\n"
        '  do        residency = "auto" or "stream" in the job'
    )


# --- what feeds hold


def held(cache: Cache, place: Place, needs: Needs = ALL, window_shards: int = 2, **options: int) -> dict[str, int]:
    """Return what a feed is projected to hold on a CPU, by name."""
    selection = select_rows(cache.samples(), "toy/train", needs)
    rows = FedRows(selection, needs, window_shards, **{"batch_size": 32} | options)
    residency = Residency(place, projected_bytes([(selection, needs)]), "")
    found = feed_bytes([rows], residency, CPU)
    return found.host | found.device


def test_what_a_stream_holds_is_what_its_blocks_are(toy_cache: Cache) -> None:
    selection = select_rows(toy_cache.samples(), "toy/train", ALL)
    source = ShardSource(toy_cache, selection)
    windows = epoch_windows(selection.shard_sizes_S, seed=0, epoch=0, window_shards=2)
    blocks = {id(a): a for a in read_windows(source, windows, source.names(ALL))}.values()
    in_memory = sum(values.nbytes for arrays in blocks for values in arrays.values())
    assert (len(blocks), held(toy_cache, "stream")["two windows of rows"]) == (2, in_memory)


def test_a_stream_of_any_length_holds_the_same(tmp_path: Path) -> None:
    short, long = (write_cache(tmp_path / str(rows), Recipe(rows=rows)) for rows in (250, 500))
    assert held(short, "stream") == held(long, "stream")


def test_kept_rows_and_their_order_grow_with_the_cache(tmp_path: Path) -> None:
    short, long = (held(write_cache(tmp_path / str(rows), Recipe(rows=rows)), "device") for rows in (250, 500))
    assert {name: long[name] / short[name] for name in long} == {
        "resident rows": 2.0,
        "rows in order": 2.0,
        "shards being read": 1.0,
    }


def test_only_so_many_shards_are_read_at_a_time(toy_cache: Cache) -> None:
    row = row_bytes(toy_cache.catalogue(), "toy", ALL)
    assert held(toy_cache, "stream")["shards being read"] == min(READERS, 5) * READ_COPIES * 50 * row


def test_a_pass_that_shows_two_views_holds_the_targets_of_both(toy_cache: Cache) -> None:
    inputs = row_bytes(toy_cache.catalogue(), "toy", Needs())
    one, two = (held(toy_cache, "stream", views=views)["two windows of rows"] for views in (1, 2))
    assert two - one == 2 * 80 * (row_bytes(toy_cache.catalogue(), "toy", ALL) - inputs)


def test_batches_on_their_way_to_a_gpu_are_counted_on_both_sides(toy_cache: Cache) -> None:
    selection = select_rows(toy_cache.samples(), "toy/train", ALL)
    rows = [FedRows(selection, ALL, 2, batch_size=32)]
    places: tuple[Place, ...] = ("device", "host", "stream")
    found = [feed_bytes(rows, Residency(place, 1000, ""), torch.device("cuda")) for place in places]
    batch = (AHEAD + 1) * 32 * row_bytes(toy_cache.catalogue(), "toy", ALL)
    assert [each.device.get("batches on their way") for each in found] == [None, batch, batch]
    assert [("resident rows" in each.host, "resident rows" in each.device) for each in found] == [
        (False, True),
        (True, False),
        (False, False),
    ]
