"""The order of an epoch in which each dataset has a share: smaller ones come again, of larger ones each takes others.

N rows in all, as many as an epoch has; S shards, V visits of shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
from numpy.typing import NDArray

from student_train.feed.order.epochs import (
    ORDER_OF_SHARDS,
    Order,
    Positions,
    Window,
    epoch_windows,
    generator,
    positions_of,
    window_order,
)

_TURNS = 1  # of the streams of the datasets, in which order their rows have their turn, whatever the epoch


@dataclass(frozen=True, slots=True)
class Shuffle:
    """How the rows of every epoch are put in order.

    Attributes:
        window_shards: rows are shuffled within so many shards.
        parts: which of the S shards each dataset of a mixture has; empty: it is none, and each row is in an epoch once.
        taken: how many rows of each of them an epoch takes, N in all.
    """

    window_shards: int
    parts: tuple[range, ...] = ()
    taken: tuple[int, ...] = ()

    def epoch(self, shard_sizes_S: Positions, *, seed: int, epoch: int) -> tuple[list[Window], Order]:
        """Return the windows of an epoch, in order, and the order within each."""
        if self.parts:
            return _mixed(shard_sizes_S, self, seed=seed, epoch=epoch)
        windows = epoch_windows(shard_sizes_S, seed=seed, epoch=epoch, window_shards=self.window_shards)
        return windows, partial(window_order, seed=seed, epoch=epoch)


def shared_out(shares: Mapping[str, float], num_rows: int) -> dict[str, int]:
    """Return how many of N rows each dataset has by its share; what is left over goes to the largest remainders.

    >>> shared_out({"a": 0.7, "b": 0.3}, 1437), shared_out({"a": 0.333, "b": 0.333, "c": 0.333}, 10)
    ({'a': 1006, 'b': 431}, {'a': 4, 'b': 3, 'c': 3})
    """
    total = sum(map(Fraction, shares.values()))
    exact = {name: num_rows * Fraction(share) / total for name, share in shares.items()}
    rows = {name: int(each) for name, each in exact.items()}
    first = sorted(shares, key=lambda name: (rows[name] - exact[name], name))  # the largest remainder
    over = first[: num_rows - sum(rows.values())]
    return {name: count + (name in over) for name, count in rows.items()}


def _mixed(shard_sizes_S: Positions, shuffle: Shuffle, *, seed: int, epoch: int) -> tuple[list[Window], Order]:
    """Return the windows of an epoch of a mixture, and the order within each.

    A window ends before the visit to a shard that would be one too many. Unlike windows of rows that come once, all of
    an epoch are made together.
    """
    random = generator(seed, epoch, ORDER_OF_SHARDS)
    rows, visits, shards, times = zip(
        *(_visits(shard_sizes_S, shuffle, part, random, seed=seed, epoch=epoch) for part in range(len(shuffle.parts))),
        strict=True,
    )
    before = np.cumsum([0, *map(len, shards[:-1])])  # visits of the parts before
    visit_N = np.concatenate([of_part + start for of_part, start in zip(visits, before.tolist(), strict=True)])
    shard_V, rows_V = np.concatenate(shards), np.bincount(visit_N, minlength=sum(map(len, shards)))
    within: list[set[int]] = [set()]  # shards of each window
    window_V = np.zeros(len(shard_V), np.int64)
    for visit in np.argsort(np.concatenate(times), kind="stable").tolist():
        if rows_V[visit]:
            if len(within[-1] | {int(shard_V[visit])}) > shuffle.window_shards:
                within.append(set())
            within[-1].add(int(shard_V[visit]))
            window_V[visit] = len(within) - 1
    window_N = window_V[visit_N]
    taken_N = np.concatenate(rows)[np.argsort(window_N, kind="stable")]  # window after window
    stops = np.cumsum(np.bincount(window_N)).tolist()
    windows = [
        Window(number, tuple(sorted(of_window)), start, stop)
        for number, (of_window, start, stop) in enumerate(zip(within, [0, *stops], stops, strict=False))
    ]

    def order(window: Window) -> Positions:
        places_P = np.searchsorted(positions_of(shard_sizes_S, window), taken_N[window.start : window.stop])
        return places_P[window_order(window, seed=seed, epoch=epoch)]

    return windows, order


def _visits(
    shard_sizes_S: Positions, shuffle: Shuffle, part: int, random: np.random.Generator, *, seed: int, epoch: int
) -> tuple[Positions, Positions, Positions, NDArray[np.float64]]:
    """Return the rows of one dataset of a mixture that an epoch takes, in which visit of a shard, which, and when.

    All rows come as many times as there is room for all of them. What is left is filled with the next rows of an order
    that is the same in every epoch, round and round, so that each of them has its turn. A shard is visited as many
    times as all of its rows come, at least once; visits are spread evenly over [0, 1), so that every stretch of an
    epoch has about the shares.
    """
    shards = shuffle.parts[part]
    sizes = shard_sizes_S[shards.start : shards.stop]
    num_rows, first = int(sizes.sum()), int(shard_sizes_S[: shards.start].sum())
    rounds, more = divmod(shuffle.taken[part], num_rows)
    turns = generator(seed, 0, part + 1, _TURNS).permutation(num_rows)
    again = turns.take(np.arange(more) + epoch * more % num_rows, mode="wrap")
    rows = np.concatenate([np.tile(np.arange(num_rows), rounds), again])
    times = max(rounds, 1)
    time = np.concatenate([np.repeat(np.arange(rounds), num_rows), random.integers(times, size=more)])
    visits = np.repeat(np.arange(len(shards)), sizes)[rows] * times + time
    num_visits = len(shards) * times
    when = np.empty(num_visits)
    when[random.permutation(num_visits)] = (np.arange(num_visits) + random.random(num_visits)) / num_visits
    return first + rows, visits, np.repeat(np.asarray(shards), times), when
