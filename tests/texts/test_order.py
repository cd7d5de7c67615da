"""The order of rows of their own length."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from student_train.feed.order import CLUMP_ROWS, POOL_ROWS, Window, like_lengths, window_order


def order(num_rows: int, *, seed: int = 0, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths of so many rows, and their order."""
    lengths_P = np.random.default_rng(1).integers(1, 100, num_rows)
    window = Window(3, (0,), 0, num_rows)
    shuffled_P = window_order(window, seed=seed, epoch=epoch)
    return lengths_P, like_lengths(shuffled_P, lengths_P, seed=seed, epoch=epoch, window=3)


@given(st.integers(1, 3 * POOL_ROWS))
def test_every_row_is_there_once(num_rows: int) -> None:
    _, order_P = order(num_rows)
    assert sorted(order_P.tolist()) == list(range(num_rows))


def test_an_order_is_a_function_of_seed_and_epoch_alone() -> None:
    same, again = order(500)[1], order(500)[1]
    assert same.tolist() == again.tolist()
    assert same.tolist() != order(500, epoch=1)[1].tolist()
    assert same.tolist() != order(500, seed=1)[1].tolist()


def test_rows_of_like_length_are_together_and_not_from_short_to_long() -> None:
    lengths_P, order_P = order(POOL_ROWS)
    clumps = lengths_P[order_P].reshape(-1, CLUMP_ROWS)
    assert (clumps.max(1) - clumps.min(1)).max() <= 10
    assert (np.diff(clumps[:, 0]) < 0).any()


def test_what_fills_no_clump_comes_last_as_it_was_shuffled() -> None:
    _, order_P = order(2 * CLUMP_ROWS + 5)
    shuffled_P = window_order(Window(3, (0,), 0, 2 * CLUMP_ROWS + 5), seed=0, epoch=0)
    assert order_P[-5:].tolist() == shuffled_P[-5:].tolist()
