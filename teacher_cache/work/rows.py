"""The rows of a shard between disk and teacher, as asking and recoding both need them.

Shapes: S rows of a shard, B readable rows of it or of a batch, `sites` the axes of a row's sites (storage.tasks), C
classes, V ≥ C logits of a padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import polars as pl

from storage.cache import Cache
from storage.cache.labels import has_label
from storage.cache.labels import labels_of as labels_in
from storage.digests import sample_keys
from storage.format.committing import read_stored
from storage.format.shards import Commit, ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.inputs import Stored
from storage.inputs.ragged import Ragged
from storage.tasks import task_of
from storage.views import PLAIN
from storage.views.check import Readable

if TYPE_CHECKING:
    from torch import Tensor

    from storage.targets.vectors import VectorTargets


def labels_of(cache: Cache, key: ShardKey, ingest: Commit, chosen_S: np.ndarray) -> Tensor:
    """Return labels of some rows, by a mask or their numbers, (B, *sites) int64, −1 where there is none."""
    import torch

    task = task_of(cache.dataset(key.dataset))
    read = partial(read_stored, cache.objects, ingest)
    return torch.from_numpy(task.labels(ingest.table, lambda name: read([name])[name], chosen_S))


def off_by(
    dataset: DatasetSpec, ingest: Commit, spec: TeacherSpec, encoded: Mapping[str, Tensor], readable_S: np.ndarray
) -> dict[str, int | float]:
    """Return how far a teacher's numbers, as they are stored, are from the rows' own, as `Answered` has it.

    Args:
        dataset: whose answers are numbers.
        ingest: of the shard, with its table.
        spec: of the teacher; of features alone nothing is told but how many rows have numbers.
        encoded: its answers to the readable rows, on the host.
        readable_S: which rows these are.
    """
    true_BT = labels_in(dataset, pl.DataFrame(pl.from_arrow(ingest.table)))[readable_S]
    known_B = has_label(dataset, true_BT)
    told: dict[str, int | float] = {"labelled": int(known_B.sum())}
    if spec.encoding.soft:
        targets = cast("VectorTargets", spec.encoding.decode(dict(encoded), spec.num_classes))
        said_BT = targets.vectors_BD.double().numpy()
        told |= {"correct": 0, "nats": float(np.square(said_BT - true_BT)[known_B].mean(axis=1).sum())}
    return told


def draw_keys(dataset: DatasetSpec, readable: Readable, view: str, labels: Tensor) -> Tensor:
    """Return what draws are a function of, sample, view and site, (B, *sites) int64, for the sites that labels have."""
    import torch

    # Of another view a sample has other draws: over all views of an epoch they average out.
    keys_B = readable.keys_B if view == PLAIN else readable.keys_B ^ sample_keys([view])
    return task_of(dataset).site_keys(torch.from_numpy(keys_B), labels.shape[1:])


def lay_down(values_P: np.ndarray, answered_S: np.ndarray, spec: TeacherSpec) -> Stored:
    """Return an array of a teacher as it is stored, of all rows of a shard.

    Args:
        values_P: of the sites that are answered, in order.
        answered_S: which sites these are, bool (S, *sites).
        spec: says whether there is something of these alone, or zeros at all others.
    """
    if not spec.labelled_positions:
        return spread_rows(values_P, answered_S)
    counts_S = answered_S.sum(tuple(range(1, answered_S.ndim)), dtype=np.int64)
    return Ragged(values_P, np.concatenate([np.zeros(1, np.int64), counts_S.cumsum()]))


def take_up(stored_S: Stored, answered_S: np.ndarray) -> np.ndarray:
    """Return what is stored of some sites, (P, …): what `lay_down` was given.

    Args:
        stored_S: an array of a teacher.
        answered_S: bool (S, *sites), which of the sites that are answered; of a row all or none.
    """
    if not isinstance(stored_S, Ragged):
        return np.asarray(stored_S[answered_S])
    return stored_S.take(np.flatnonzero(answered_S.any(tuple(range(1, answered_S.ndim))))).flat_T


def spread_rows(values_B: np.ndarray, there_S: np.ndarray) -> np.ndarray:
    """Return (S, …) with zeros where a row is unreadable; no reader is ever given such a row.

    Args:
        values_B: of those that are there, in order.
        there_S: bool, (S,); or (S, *sites), of which `values_B` are single sites, (P, …).
    """
    if there_S.all():
        return values_B.reshape(*there_S.shape, *values_B.shape[1:])
    values_S = np.zeros((*there_S.shape, *values_B.shape[1:]), values_B.dtype)
    values_S[there_S] = values_B
    return values_S


def answered_sites(dataset: DatasetSpec, labels_B: Tensor, readable_S: np.ndarray) -> np.ndarray:
    """Return at which sites of a shard's rows a teacher is asked for an answer, bool (S, *sites)."""
    answered = task_of(dataset).answered_sites(labels_B).numpy()
    return spread_rows(answered, readable_S)
