from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.views import PLAIN
from student_train.feed.order import (
    Cut,
    Piece,
    count_steps,
    dataset_windows,
    epoch_windows,
    interleave,
    largest_batch,
    window_order,
)
from tests.student_train.toys import epoch_order

SIZES = st.lists(st.integers(0, 9), min_size=0, max_size=12)
SEEDS = st.integers(0, 2**63 - 1)


@given(SIZES, SEEDS, st.integers(0, 1000), st.integers(1, 14))
def test_every_row_is_in_an_epoch_exactly_once(sizes: list[int], seed: int, epoch: int, window_shards: int) -> None:
    order = epoch_order(np.array(sizes, np.int64), seed=seed, epoch=epoch, window_shards=window_shards)
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@given(SIZES, SEEDS, st.integers(1, 14))
def test_an_epoch_is_its_windows_one_after_another(sizes: list[int], seed: int, window_shards: int) -> None:
    sizes_S = np.array(sizes, np.int64)
    first_S = np.cumsum(sizes_S) - sizes_S
    expected: list[int] = []
    for window in epoch_windows(sizes_S, seed=seed, epoch=3, window_shards=window_shards):
        assert window.start == len(expected)
        rows = [first_S[s] + i for s in window.shards for i in range(sizes[s])]
        expected += [rows[i] for i in window_order(window, seed=seed, epoch=3)]
        assert window.stop == len(expected)
    order = epoch_order(sizes_S, seed=seed, epoch=3, window_shards=window_shards)
    assert order.tolist() == expected


def test_rows_stay_within_their_window() -> None:
    sizes_S = np.full(8, 10)
    order = epoch_order(sizes_S, seed=5, epoch=0, window_shards=2)
    assert [len({row // 10 for row in order[start : start + 20]}) for start in range(0, 80, 20)] == [2, 2, 2, 2]


def test_a_window_of_all_shards_does_not_depend_on_where_shards_end() -> None:
    one = epoch_order(np.array([30, 30]), seed=1, epoch=2, window_shards=2)
    other = epoch_order(np.array([10, 20, 30]), seed=1, epoch=2, window_shards=99)
    assert one.tolist() == other.tolist()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    sizes_S = np.array([50, 50])
    orders = {
        tuple(epoch_order(sizes_S, seed=seed, epoch=epoch, window_shards=1).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    order = epoch_order(np.array([3, 4, 2]), seed=1, epoch=0, window_shards=2)
    assert order.tolist() == [5, 1, 4, 6, 2, 0, 3, 8, 7]


def test_windows_of_the_dataset_are_its_shards() -> None:
    windows = dataset_windows(np.array([3, 4, 2]))
    assert [(window.shards, window.start, window.stop) for window in windows] == [
        ((0,), 0, 3),
        ((1,), 3, 7),
        ((2,), 7, 9),
    ]


# --- batches


CUTS = st.lists(st.builds(Cut, st.integers(1, 9), st.just(PLAIN), st.integers(0, 4), st.just(1)), max_size=4)


@given(CUTS, st.integers(0, 30))
def test_every_cut_has_each_row_from_its_first_step_on_once(cuts: list[Cut], num_rows: int) -> None:
    pieces = list(interleave(cuts, num_rows))
    for number, cut in enumerate(cuts):
        rows = [row for piece in pieces if piece.cut == number for row in range(piece.start, piece.stop)]
        left = cut.first_step < count_steps(num_rows, cut.batch_size)
        assert rows == (list(range(cut.first_step * cut.batch_size, num_rows)) if left else [])


@given(CUTS, st.integers(0, 30))
def test_batches_come_when_their_last_row_does(cuts: list[Cut], num_rows: int) -> None:
    ends = [piece.stop for piece in interleave(cuts, num_rows)]
    assert ends == sorted(ends)


def test_no_cut_runs_ahead_of_another() -> None:
    found = [(piece.cut, piece.step) for piece in interleave([Cut(4), Cut(2, first_step=1)], 10)]
    assert found == [(0, 0), (1, 1), (1, 2), (0, 1), (1, 3), (0, 2), (1, 4)]


def test_the_last_batch_of_an_epoch_may_be_smaller() -> None:
    assert list(interleave([Cut(4)], 6)) == [Piece(4, 0, 0, 0), Piece(6, 0, 1, 4)]


def test_a_last_row_joins_the_batch_before() -> None:
    assert list(interleave([Cut(4)], 9)) == [Piece(4, 0, 0, 0), Piece(9, 0, 1, 4)]


@given(st.integers(1, 9), st.integers(1, 40))
def test_no_batch_has_one_row_of_many_and_none_is_larger_than_said(batch_size: int, num_rows: int) -> None:
    sizes = [piece.stop - piece.start for piece in interleave([Cut(batch_size)], num_rows)]
    assert (len(sizes), max(sizes)) == (count_steps(num_rows, batch_size), largest_batch(num_rows, batch_size))
    assert 1 not in sizes or 1 in (batch_size, num_rows)
    assert max(sizes) <= batch_size + 1
