"""Which rows an audit asks about: drawn by a seed, and spread over datasets, teachers, views and shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from storage.format.shards import ShardKey
from storage.format.stages import Stage

ROWS_PER_SHARD = 8  # at least, where so many are wanted: a shard is read whole, and a batch has more than one row


def choose_shards(
    shards_of: Mapping[Stage, Sequence[int]], wanted: int, draw: np.random.Generator
) -> list[tuple[ShardKey, int]]:
    """Return shards, and how many rows to choose of each; every stage has one row at least.

    Args:
        shards_of: stage → its committed shards; none is empty.
        wanted: rows of all stages together.
        draw: which shards these are.

    Of ten shards each, a view has half of the 48 rows, in three shards:

    >>> chosen = choose_shards({("d", "t", v): range(10) for v in ("plain", "view-000")}, 48, np.random.default_rng(0))
    >>> [(key.view, rows) for key, rows in chosen]
    [('plain', 8), ('plain', 8), ('plain', 8), ('view-000', 8), ('view-000', 8), ('view-000', 8)]
    """
    chosen = []
    for (dataset, teacher, view), rows in zip(shards_of, _even(wanted, len(shards_of)), strict=True):
        there = shards_of[dataset, teacher, view]
        num_shards = min(len(there), -(-rows // ROWS_PER_SHARD))
        drawn = sorted(draw.choice(len(there), num_shards, replace=False).tolist())
        keys = [ShardKey(dataset, teacher, view, there[place]) for place in drawn]
        chosen += list(zip(keys, _even(rows, num_shards), strict=True))
    return chosen


def _even(total: int, parts: int) -> list[int]:
    """Return a total in parts as even as can be, none of them 0."""
    return [max(1, (part + 1) * total // parts - part * total // parts) for part in range(parts)]
