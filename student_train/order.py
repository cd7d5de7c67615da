"""Row order as a pure function of (seed, epoch, shuffle window), and of nothing else.

Rows are numbered by position: the rows that are fed, in dataset order, from 0. Shards are put in a random order
and taken in windows of W; the rows of a window are then shuffled among themselves. A window of all shards is a
full shuffle. Each window is a function of its own number, so that a stream need not hold an epoch's order.

N rows in all, S shards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]

_ORDER_OF_SHARDS = 0  # the generator's stream number; windows have theirs from 1 on


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


def epoch_windows(shard_sizes_S: Positions, *, seed: int, epoch: int, window_shards: int) -> list[Window]:
    """Return the windows of an epoch, in order; together they hold every shard once."""
    shards_S = _generator(seed, epoch, _ORDER_OF_SHARDS).permutation(len(shard_sizes_S))
    windows, start = [], 0
    for number, first in enumerate(range(0, len(shards_S), window_shards)):
        shards = np.sort(shards_S[first : first + window_shards])
        stop = start + int(shard_sizes_S[shards].sum())
        windows.append(Window(number, tuple(shards.tolist()), start, stop))
        start = stop
    return windows


def window_order(window: Window, *, seed: int, epoch: int) -> Positions:
    """Return the order within a window, counted from the first row of its first shard: a permutation."""
    return _generator(seed, epoch, 1 + window.number).permutation(window.stop - window.start)


def epoch_order(shard_sizes_S: Positions, *, seed: int, epoch: int, window_shards: int) -> Positions:
    """Return the positions of all N rows in the order in which an epoch takes them."""
    first_S = np.cumsum(shard_sizes_S) - shard_sizes_S
    parts = [np.empty(0, np.int64)]
    for window in epoch_windows(shard_sizes_S, seed=seed, epoch=epoch, window_shards=window_shards):
        rows = np.concatenate([np.arange(first_S[s], first_S[s] + shard_sizes_S[s]) for s in window.shards])
        parts.append(rows[window_order(window, seed=seed, epoch=epoch)])
    return np.concatenate(parts)


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Return a counter-based generator: its key is (seed, epoch), and each stream starts 2**192 numbers apart."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=[0, 0, 0, stream]))
