"""The rows of a shard between disk and teacher, as asking and recoding both need them.

Shapes: S rows of a shard, B readable rows of it or of a batch, L positions of a row of tokens, C classes, V ≥ C
logits of a padded vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from storage.cache import Cache
from storage.digests import sample_keys
from storage.encodings import AnyEncoding
from storage.format.shards import Commit, ShardKey
from storage.tasks import NO_LABEL
from storage.views import PLAIN
from storage.views.check import Readable

if TYPE_CHECKING:
    from torch import Tensor


def labels_of(cache: Cache, key: ShardKey, ingest: Commit) -> np.ndarray:
    """Return labels, int64 (S,) or of tokens (S, L), −1 where there is none."""
    if cache.dataset(key.dataset).vocabulary is not None:
        return cache.read_labels(key.dataset, key.shard).astype(np.int64)
    return np.asarray(ingest.table["label"].fill_null(NO_LABEL).to_numpy().astype(np.int64))


def draw_keys(readable: Readable, view: str) -> np.ndarray:
    """Return what draws are a function of, sample and view, int64 (B,)."""
    return readable.keys_B if view == PLAIN else readable.keys_B ^ sample_keys([view])


def encode_rows(
    encoding: AnyEncoding, logits: Tensor, labels: Tensor, keys_B: Tensor, num_classes: int
) -> dict[str, Tensor]:
    """Return the arrays of an encoding for some rows, (B, …), of tokens (B, L, …).

    Args:
        encoding: how to store them.
        logits: float32, (B, V), of tokens (B, L, V).
        labels: int64, one for each, −1 where there is none, on the same device.
        keys_B: of the rows (`draw_keys`).
        num_classes: C ≤ V.
    """
    from storage.encodings.draws import position_keys

    keys = keys_B.to(logits.device)
    if logits.ndim == 3:
        keys = position_keys(keys, logits.shape[1])
    encoded = encoding.encode(
        logits.flatten(0, -2), num_classes=num_classes, labels_B=labels.flatten(), keys_B=keys.flatten()
    )
    return {name: values.unflatten(0, logits.shape[:-1]) for name, values in encoded.items()}


def spread_rows(values_B: np.ndarray, readable_S: np.ndarray) -> np.ndarray:
    """Return (S, …) with zeros where a row is unreadable; no reader is ever given such a row."""
    if readable_S.all():
        return values_B
    values_S = np.zeros((len(readable_S), *values_B.shape[1:]), values_B.dtype)
    values_S[readable_S] = values_B
    return values_S
