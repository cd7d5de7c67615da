"""The order of an epoch in which each dataset has its share."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from student_train.feed.order import Positions, Shuffle, join_windows
from student_train.feed.order.mixture import shared_out

PARTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=2, max_size=3)
SEEDS = st.integers(0, 2**63 - 1)


def shuffle_of(parts: list[list[int]], taken: list[int], window_shards: int) -> tuple[Positions, Shuffle]:
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    ranges = tuple(range(start, start + len(sizes)) for start, sizes in zip(starts, parts, strict=False))
    return np.array([size for sizes in parts for size in sizes]), Shuffle(window_shards, ranges, tuple(taken))


def epoch_of(sizes_S: Positions, shuffle: Shuffle, seed: int, epoch: int) -> list[int]:
    windows, order = shuffle.epoch(sizes_S, seed=seed, epoch=epoch)
    return join_windows(sizes_S, windows, order).tolist()


@given(PARTS, st.data(), SEEDS, st.integers(1, 6))
def test_an_epoch_has_its_rows_of_each_dataset_and_over_epochs_all_of_them_come_alike(
    parts: list[list[int]], data: st.DataObject, seed: int, window_shards: int
) -> None:
    taken = [data.draw(st.integers(1, 3 * sum(sizes) + 1)) for sizes in parts]
    sizes_S, shuffle = shuffle_of(parts, taken, window_shards)
    first = np.cumsum([0, *(sum(sizes) for sizes in parts)]).tolist()
    of_part = [range(start, stop) for start, stop in pairwise(first)]
    met = Counter[int]()
    for epoch in range(max(-(-len(rows) // count) for rows, count in zip(of_part, taken, strict=True))):
        counted = Counter(epoch_of(sizes_S, shuffle, seed, epoch))
        met += counted
        for rows, count in zip(of_part, taken, strict=True):
            times = [counted[row] for row in rows]
            assert sum(times) == count
            assert max(times) - min(times) <= 1
            turns = [met[row] for row in rows]
            assert max(turns) - min(turns) <= 1
    assert met.keys() == set(range(int(sizes_S.sum())))


@given(PARTS, st.data(), SEEDS, st.integers(1, 6))
def test_a_window_holds_no_more_shards_than_it_may(
    parts: list[list[int]], data: st.DataObject, seed: int, window_shards: int
) -> None:
    taken = [data.draw(st.integers(1, 3 * sum(sizes) + 1)) for sizes in parts]
    sizes_S, shuffle = shuffle_of(parts, taken, window_shards)
    windows, order = shuffle.epoch(sizes_S, seed=seed, epoch=2)
    assert [window.start for window in windows] == [0, *(window.stop for window in windows)][:-1]
    assert windows[-1].stop == sum(taken)
    for window in windows:
        assert 1 <= len(window.shards) <= window_shards
        places = order(window)
        assert len(places) == window.stop - window.start
        assert places.max() < sizes_S[list(window.shards)].sum()
    assert window_shards < len(sizes_S) or len(windows) == 1


def test_every_stretch_of_an_epoch_has_about_the_shares() -> None:
    sizes_S, shuffle = shuffle_of([[10] * 40, [10] * 2], [300, 120], window_shards=4)
    order = epoch_of(sizes_S, shuffle, 0, 0)
    of_small = [sum(row >= 400 for row in order[start : start + 70]) for start in range(0, 420, 70)]
    assert sum(of_small) == 120
    assert all(abs(count - 20) <= 12 for count in of_small)  # shuffled by shards alone, all would lie in two windows


def test_epochs_and_seeds_have_mixtures_of_their_own() -> None:
    sizes_S, shuffle = shuffle_of([[20, 20], [20]], [30, 30], window_shards=2)
    orders = {tuple(epoch_of(sizes_S, shuffle, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert epoch_of(sizes_S, shuffle, 1, 2) == epoch_of(sizes_S, shuffle, 1, 2)


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(1e-3, 1), min_size=2), st.integers(1, 10**9))
def test_rows_are_shared_out_to_the_last_and_to_within_one(shares: dict[str, float], num_rows: int) -> None:
    rows = shared_out(shares, num_rows)
    total = sum(map(Fraction, shares.values()))
    assert sum(rows.values()) == num_rows
    assert all(abs(rows[name] - num_rows * Fraction(share) / total) < 1 for name, share in shares.items())
