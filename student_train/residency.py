"""Where rows are kept for a whole run of students: resident when they fit, else streamed; loaded once for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

import numpy as np
import torch

from storage.cache import Cache
from storage.encodings import Capability, Encoded, Encoding
from storage.encodings.dense import BYTES
from storage.errors import BadRequest
from student_train.devices import free_bytes, gib
from student_train.feed import Arrays, Feed, Name, ShardSource, Tick
from student_train.needs import ArrayKey, Needs
from student_train.selection import Selection

LABEL_BYTES = 4  # of each position of tokens
RESIDENT_SHARE = 0.5  # of the device's free memory that resident rows may take; the rest is the students'


@dataclass(frozen=True, slots=True)
class Residency:
    """A choice between resident and stream, with its reason."""

    resident: bool
    projected_bytes: int
    why: str


def row_bytes(cache: Cache, dataset: str, needs: Needs, *, views: int = 1) -> int:
    """Return the bytes of one row as it is kept: its input, and soft targets and features of so many views."""
    spec = cache.dataset(dataset)
    total = 0
    positions = 1 if spec.vocabulary is None else prod(spec.input_shape)
    total += 0 if spec.vocabulary is None else positions * LABEL_BYTES
    for name in needs.teachers:
        teacher = cache.teacher(dataset, name)
        total += positions * _soft_bytes(teacher.encoding, teacher.num_classes, needs.of(name))
    for key in needs.features:
        encoding = cache.teacher(dataset, key.teacher).features[key.array.removeprefix("feature/")]
        total += prod(feature_shape(cache, dataset, key)) * BYTES[encoding.dtype]
    return prod(spec.input_shape) * np.dtype(spec.input_dtype).itemsize + views * total


def _soft_bytes(encoding: Encoding, num_classes: int, wanted: frozenset[Capability]) -> int:
    """Return the bytes of a row, or position, of those arrays of soft targets that must be read to serve some needs."""
    if not wanted:
        return 0
    one_row = Encoded.blank(encoding, num_classes, 1, torch.device("cpu")).arrays
    return sum(one_row[name].nbytes for name in encoding.array_names(wanted))


@lru_cache(maxsize=256)
def feature_shape(cache: Cache, dataset: str, key: ArrayKey) -> tuple[int, ...]:
    """Return the shape of one row of a feature, read from its first committed shard."""
    view = cache.view_names(dataset, key.teacher)[0]
    first = min(cache.committed(dataset, key.teacher, view))
    return cache.read_targets(dataset, key.teacher, first, view, names=[key.array])[key.array].shape[1:]


def choose_residency(
    asked: Literal["auto", "resident", "stream"], projected_bytes: int, device: torch.device
) -> Residency:
    """Return where rows are to be kept, with the reason.

    Raises:
        BadRequest: resident rows were asked for and are larger than the device's free memory.
    """
    free = free_bytes(device)
    figures = f"{gib(projected_bytes)} of rows, {gib(free)} free on {device}"
    if asked == "stream":
        return Residency(False, projected_bytes, f"the job says so ({figures})")
    if asked == "resident":
        if projected_bytes > free:
            raise BadRequest(
                "the rows do not fit on the device", found=figures, do='residency = "stream" or "auto" in the job'
            )
        return Residency(True, projected_bytes, f"the job says so ({figures})")
    fits = projected_bytes <= RESIDENT_SHARE * free
    return Residency(fits, projected_bytes, f"{figures}, {'within' if fits else 'above'} a share of {RESIDENT_SHARE:g}")


class FeedPool:
    """Feeds of all students of a job; those that read the same rows share one copy of them.

    Args:
        cache: where rows are.
        device: where they are to be.
        resident: whether they stay there.
        window_shards: of the shuffle.
    """

    def __init__(self, cache: Cache, device: torch.device, *, resident: bool, window_shards: int):
        self._cache = cache
        self._device = device
        self._resident = resident
        self._window_shards = window_shards
        self._loaded: dict[tuple[str, str], Arrays] = {}  # by dataset and fingerprint of the rows

    def feed(self, selection: Selection, needs: Needs, tick: Tick = lambda done, shards: None) -> Feed:
        """Return a feed of these rows; what no feed before it needed is loaded now, with a `tick` after each shard."""
        source = ShardSource(self._cache, selection)
        arrays: Arrays | None = None
        if self._resident:
            arrays = self._loaded.setdefault((selection.dataset, selection.fingerprint), {})
            names = [source.names(needs, view) for view in selection.view_names]
            absent = frozenset[Name]().union(*names) - arrays.keys()
            if absent:
                arrays |= source.load(tuple(range(len(selection.shards_S))), absent, self._device, tick)
        return Feed(source, needs, self._device, arrays, self._window_shards)


def projected_bytes(cache: Cache, wanted: Iterable[tuple[Selection, Needs]]) -> int:
    """Return the bytes of all rows of a job, each array counted once."""
    union: dict[tuple[str, str], tuple[int, int, Needs]] = {}
    for selection, needs in wanted:
        key = (selection.dataset, selection.fingerprint)
        _, views, before = union.get(key, (0, 1, Needs()))
        union[key] = (selection.num_rows, max(views, len(selection.view_names)), before | needs)
    return sum(
        rows * row_bytes(cache, dataset, needs, views=views) for (dataset, _), (rows, views, needs) in union.items()
    )
