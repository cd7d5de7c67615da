"""A few rows of the cache, drawn by a seed and spread over its shards: for scores, calibration, and to compare on.

B rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from storage.cache import Cache
from storage.errors import NotInCache
from storage.format.shards import ShardKey
from storage.inputs import inputs_of
from storage.inputs.texts import PADDING
from storage.views import PLAIN
from storage.views.check import readable_rows
from teacher_cache.work.rows import labels_of

if TYPE_CHECKING:
    from torch import Tensor

MOST_SHARDS = 16  # of which rows are read
HELD = "validation"  # rows that measure a student are not for choosing its units


class Rows(NamedTuple):
    """Rows as a view without any change shows them, and their labels.

    Attributes:
        shown_B: as stored, (B, …).
        labels_B: int64 (B, *sites), −1 where there is none.
    """

    shown_B: Tensor
    labels_B: Tensor


def some_rows(cache: Cache, dataset: str, count: int, seed: int) -> Rows:
    """Return some readable rows of a dataset, none of its held ones.

    Args:
        cache: that holds them.
        dataset: its name.
        count: of rows, at most.
        seed: of which they are.

    Raises:
        NotInCache: there are none.
    """
    import torch

    draw = np.random.default_rng(seed)
    spec, there = cache.dataset(dataset), sorted(cache.committed(dataset))
    shards = sorted(draw.permutation(there)[:MOST_SHARDS].tolist())
    shown, labels, left = [], [], count
    for place, shard in enumerate(shards):
        key = ShardKey(dataset, None, PLAIN, shard)
        ingest = cache.commit(key, with_table=True)
        readable, stored_S = readable_rows(ingest.table), cache.rows_of(ingest)
        usable_B = np.flatnonzero(readable.splits_B != HELD)
        wanted = -(-left // (len(shards) - place))  # as many of each shard as of the others
        places_B = np.sort(draw.permutation(usable_B)[:wanted])
        if len(places_B):
            shown.append(inputs_of(spec).shown(stored_S, np.flatnonzero(readable.mask_S)[places_B]))
            labels.append(labels_of(cache, key, ingest, np.flatnonzero(readable.mask_S)[places_B]))
            left -= len(places_B)
    if not shown:
        raise NotInCache(f"{cache.url} has no rows of {dataset} to look at", do="cache build JOB.toml")
    if len({rows.shape[1:] for rows in shown}) > 1:  # each as long as the longest of its shard
        longest = max(rows.shape[1] for rows in shown)
        shown = [_padded(rows, longest, PADDING) for rows in shown]
        labels = [_padded(each, longest, -1) if each.ndim > 1 else each for each in labels]
    return Rows(torch.cat(shown), torch.cat(labels))


def _padded(rows_BL: Tensor, length: int, value: int) -> Tensor:
    from torch.nn import functional

    padded: Tensor = functional.pad(rows_BL, (0, length - rows_BL.shape[1]), value=value)
    return padded
