"""Row order as a pure function of (seed, epoch, shuffle window), and of nothing else; and how batches are cut from it.

Rows are numbered by position: the rows that are fed, in dataset order, from 0. Shards are put in a random order
and taken in windows of W; the rows of a window are then shuffled among themselves. A window of all shards is a
full shuffle. Each window is a function of its own number, so that a stream need not hold an epoch's order.

Students with other batch sizes cut the same order at other places.

N rows in all, S shards.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.views import PLAIN

Positions = NDArray[np.int64]
# The rows of a window in their order, counted from the first row of its first shard; in a mixture one may come again.
Order = Callable[["Window"], Positions]

ORDER_OF_SHARDS = 0  # the generator's stream number; windows have theirs from 1 on


@dataclass(frozen=True, slots=True)
class Window:
    """Some shards whose rows are shuffled together: the epoch's rows [start, stop).

    Attributes:
        number: 0, 1, … in the order in which an epoch takes them.
        shards: which of the S shards, ascending.
    """

    number: int
    shards: tuple[int, ...]
    start: int
    stop: int


class Cut(NamedTuple):
    """How an epoch is cut into batches for some students.

    Attributes:
        batch_size: rows of a batch; the last one of an epoch may have fewer, or one more.
        view: that the batches show.
        first_step: the first batch that is wanted, from 0.
        every: from there on, one batch of so many is wanted.
    """

    batch_size: int
    view: str = PLAIN
    first_step: int = 0
    every: int = 1


def count_steps(num_rows: int, batch_size: int) -> int:
    """Return the number of batches of N rows; a last row that would be one by itself joins the batch before.

    Over one row batch norm has no variance. Batches of 4 rows:

        >>> [count_steps(num_rows, 4) for num_rows in (8, 9, 10)]
        [2, 2, 3]
        >>> count_steps(1, 4), count_steps(3, 1)  # nothing to join; and one row is what the job asks for
        (1, 3)
    """
    whole, over = divmod(num_rows, batch_size)
    return whole + (over > 1 or (over == 1 and not whole))


def largest_batch(num_rows: int, batch_size: int) -> int:
    """Return the rows of the largest of these batches.

    >>> [largest_batch(num_rows, 4) for num_rows in (3, 8, 9)]
    [3, 4, 5]
    """
    return max(min(num_rows, batch_size), num_rows - batch_size * (count_steps(num_rows, batch_size) - 1))


class Piece(NamedTuple):
    """One batch of one cut: rows [start, stop) of an epoch. Pieces sort by where they end.

    Attributes:
        stop: of the rows.
        cut: which of the cuts.
        step: 0, 1, … in the epoch.
        start: of the rows.
    """

    stop: int
    cut: int
    step: int
    start: int


def interleave(cuts: Sequence[Cut], num_rows: int) -> Iterator[Piece]:
    """Yield the batches of all cuts, in the order in which a pass over N rows has read the last row of each.

    Students of batch size 4 and of batch size 6, on 10 rows:

        >>> for piece in interleave([Cut(4), Cut(6)], 10):
        ...     print(f"cut {piece.cut}, step {piece.step}: rows {piece.start} to {piece.stop - 1}")
        cut 0, step 0: rows 0 to 3
        cut 1, step 0: rows 0 to 5
        cut 0, step 1: rows 4 to 7
        cut 0, step 2: rows 8 to 9
        cut 1, step 1: rows 6 to 9
    """
    # each cut's own ascend already
    return heapq.merge(*(_pieces(number, cut, num_rows) for number, cut in enumerate(cuts)))


def _pieces(number: int, cut: Cut, num_rows: int) -> Iterator[Piece]:
    steps = count_steps(num_rows, cut.batch_size)
    for step in range(cut.first_step, steps, cut.every):
        start = step * cut.batch_size
        yield Piece(num_rows if step == steps - 1 else start + cut.batch_size, number, step, start)


def epoch_windows(shard_sizes_S: Positions, *, seed: int, epoch: int, window_shards: int) -> list[Window]:
    """Return the windows of an epoch, in order; together they hold every shard once."""
    shards_S = generator(seed, epoch, ORDER_OF_SHARDS).permutation(len(shard_sizes_S))
    windows, start = [], 0
    for number, first in enumerate(range(0, len(shards_S), window_shards)):
        shards = np.sort(shards_S[first : first + window_shards])
        stop = start + int(shard_sizes_S[shards].sum())
        windows.append(Window(number, tuple(shards.tolist()), start, stop))
        start = stop
    return windows


def window_order(window: Window, *, seed: int, epoch: int) -> Positions:
    """Return the order within a window, counted from the first row of its first shard: a permutation."""
    return generator(seed, epoch, 1 + window.number).permutation(window.stop - window.start)


def join_windows(shard_sizes_S: Positions, windows: Sequence[Window], order: Order) -> Positions:
    """Return the positions of all rows of some windows, each window's in its order."""
    # at least no rows: there may be no window
    return np.concatenate(
        [np.empty(0, np.int64), *(positions_of(shard_sizes_S, window)[order(window)] for window in windows)]
    )


def positions_of(shard_sizes_S: Positions, window: Window) -> Positions:
    """Return the position of each row of a window, in dataset order."""
    first_S = np.cumsum(shard_sizes_S) - shard_sizes_S  # where each shard's rows begin
    return np.concatenate([np.arange(first_S[s], first_S[s] + shard_sizes_S[s]) for s in window.shards])


def dataset_windows(shard_sizes_S: Positions) -> list[Window]:
    """Return a window for each shard, in dataset order."""
    stops_S = np.cumsum(shard_sizes_S)
    starts_S = stops_S - shard_sizes_S
    return [
        Window(shard, (shard,), start, stop)
        for shard, (start, stop) in enumerate(zip(starts_S.tolist(), stops_S.tolist(), strict=True))
    ]


def generator(seed: int, epoch: int, stream: int, purpose: int = 0) -> np.random.Generator:
    """Return a counter-based generator: its key is (seed, epoch), and each stream starts 2**192 numbers apart.

    Those of another purpose lie 2**128 numbers behind.
    """
    counter = [0, 0, purpose, stream]
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=counter))
