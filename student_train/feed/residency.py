"""Where rows are kept for a whole run of students: on the device, on the host, or in the cache; loaded once for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal

import numpy as np
import torch

from storage.cache import Cache, Catalogue
from storage.encodings import Capability, Encoded, Encoding
from storage.encodings.dense import BYTES
from storage.errors import BadRequest, gib
from storage.format.shards import stage_folder
from storage.format.stores.base import num_ahead
from storage.inputs import inputs_of
from storage.inputs.encoded import OwnSize, own_shape
from storage.tasks import task_of
from student_train.feed.batches import Name, Needs
from student_train.feed.devices import free_bytes
from student_train.feed.feed import Feed
from student_train.feed.flat import Kept
from student_train.feed.selection import Selection
from student_train.feed.shard_source import FEATURE, ShardSource
from student_train.feed.windows import Tick, load
from student_train.options.sections import ResidencyChoice

LABEL_BYTES = 4  # of each site, in an array
PLACE_BYTES = 48  # of a row of its own length: where it begins and ends, how long it is, on the host and where it lies
KEPT_SHARE = 0.5  # of the free memory of a place that rows may take unasked; the rest is the students'

Place = Literal["device", "host", "stream"]
Rows = tuple[tuple[str, ...], str, OwnSize | None]  # what rows in memory are


def _rows(selection: Selection) -> Rows:
    return selection.datasets, selection.fingerprint, selection.own


@dataclass(frozen=True, slots=True)
class Residency:
    """Where rows are kept, and why.

    Attributes:
        place: "device" and "host" hold all of them; "stream" two shuffle windows, on the host. On a CPU, device and
            host are the same thing, and it is called the device.
        projected_bytes: of all rows.
        why: in words.
    """

    place: Place
    projected_bytes: int
    why: str


def input_bytes(selection: Selection, shards: Sequence[int] | None = None, *, views: int = 1) -> int:
    """Return the bytes of the fed rows of some of the S shards, by default of all, as they are kept, targets apart.

    They are of inputs, and of labels where those are an array; pictures that are decoded anew for each view are there
    as often as there are `views`.
    """
    shards = range(len(selection.shards_S)) if shards is None else shards
    spec, num_rows = selection.spec, int(selection.shard_sizes_S[list(shards)].sum())
    item_bytes = [np.dtype(spec.input_dtype).itemsize, *[LABEL_BYTES] * (task_of(spec).label_array is not None)]
    if (lengths := selection.lengths_of(shards)) is not None:
        return sum(item_bytes) * int(lengths.sum()) + len(item_bytes) * PLACE_BYTES * num_rows
    return sum(item_bytes) * prod(selection.row_shape) * num_rows * (views if _decoded_for_views(selection) else 1)


def _decoded_for_views(selection: Selection) -> bool:
    if selection.views is None:
        return False
    view = selection.views.spec.view(selection.views.names[0])
    return inputs_of(selection.spec).left(view) != view


def row_bytes(catalogue: Catalogue, dataset: str, needs: Needs, own: OwnSize | None = None) -> int:
    """Return the bytes of one row in a batch, of the longest: its input, and soft targets and features of one view."""
    return sum(array_bytes(catalogue, dataset, needs, own))


def target_bytes(selection: Selection, needs: Needs, shards: Sequence[int] | None = None, *, views: int = 1) -> int:
    """Return the bytes of what teachers said of the fed rows of some of the S shards, by default of all, as kept."""
    shards = range(len(selection.shards_S)) if shards is None else shards
    num_rows, labelled = int(selection.shard_sizes_S[list(shards)].sum()), selection.labelled_of(shards)
    catalogue, dataset = selection.catalogue, selection.datasets[0]  # of several they are stored alike
    total = 0
    for teacher, sizes in _target_sizes(catalogue, dataset, needs.within(dataset)):
        if labelled is not None and selection.at_labels(teacher):
            total += sum(sizes) * int(labelled.sum()) + len(sizes) * PLACE_BYTES * num_rows
        else:
            total += sum(sizes) * _sites(catalogue, dataset) * num_rows
    return views * total


def _sites(catalogue: Catalogue, dataset: str) -> int:
    """Return how many sites the longest row has."""
    spec = catalogue.dataset(dataset)
    return prod(task_of(spec).sites(spec.input_shape))


def _target_sizes(catalogue: Catalogue, dataset: str, needs: Needs) -> Iterator[tuple[str, list[int]]]:
    """Yield teachers, and of each array of theirs the bytes of a site."""
    sites = _sites(catalogue, dataset)
    for name in needs.teachers:
        teacher = catalogue.teacher(dataset, name)
        yield name, _soft_bytes(teacher.encoding, teacher.num_classes, needs.of(name))
    for key in needs.features:
        encoding = catalogue.teacher(dataset, key.teacher).features[key.array.removeprefix(FEATURE)]
        yield key.teacher, [prod(catalogue.row_shape(dataset, key.teacher, key.array)) * BYTES[encoding.dtype] // sites]


def array_bytes(catalogue: Catalogue, dataset: str, needs: Needs, own: OwnSize | None = None) -> list[int]:
    """Return the bytes of a row of each array, the inputs first; labels among them, where they are an array.

    Of inputs of their own length, the bytes of the longest.
    """
    spec, needs = catalogue.dataset(dataset), needs.within(dataset)
    sizes = [prod(own_shape(spec.input_shape, own)) * np.dtype(spec.input_dtype).itemsize]
    sites = _sites(catalogue, dataset)
    if task_of(spec).label_array is not None:
        sizes.append(sites * LABEL_BYTES)
    return sizes + [sites * size for _, of_teacher in _target_sizes(catalogue, dataset, needs) for size in of_teacher]


def shard_bytes(selection: Selection, needs: Needs, shard: int, views: int) -> int:
    """Return the bytes of the fed rows of one of the S shards, as they are kept."""
    return input_bytes(selection, [shard], views=views) + target_bytes(selection, needs, [shard], views=views)


def largest_shard(selection: Selection, needs: Needs, views: int = 1) -> tuple[int, int]:
    """Return the bytes of the largest shard with all its rows, and of pictures that they are decoded from, beside.

    Args:
        selection, needs: of rows.
        views: of which targets are read.
    """
    decoded_bytes = stored_bytes = 0
    for part in selection.parts:
        planned = {shard.shard: shard.stop - shard.start for shard in selection.catalogue.shards(part.dataset)}
        if selection.catalogue.dataset(part.dataset).encoded:
            groups = selection.catalogue.objects.list(stage_folder(part.dataset, None)).objects
            stored_bytes = max([stored_bytes, *(group.size_bytes for group in groups)])
        in_bytes = selection.catalogue.dataset(part.dataset).byte_ranges
        for i in part.shards:  # all rows of a shard are read, those that are not fed too, which are about as long
            # a shard in a range of bytes is of those, not of rows: then up to the last that is fed
            num_rows = int(selection.rows[i].max()) + 1 if in_bytes else planned[selection.shards_S[i]]
            fed_bytes = shard_bytes(selection, needs, i, views)
            decoded_bytes = max(decoded_bytes, fed_bytes * num_rows // int(selection.shard_sizes_S[i]))
    return decoded_bytes, stored_bytes


def _soft_bytes(encoding: Encoding, num_classes: int, wanted: frozenset[Capability]) -> list[int]:
    """Return the bytes of a site of each array of soft targets that must be read to serve some needs."""
    if not wanted:
        return []
    one_row = Encoded.blank(encoding, num_classes, 1, torch.device("cpu")).arrays
    return [one_row[name].nbytes for name in encoding.array_names(wanted)]


def choose_residency(asked: ResidencyChoice, projected_bytes: int, device: torch.device) -> Residency:
    """Return where rows are to be kept, with the reason, by the memory that is free now. Raises as `choose_place`."""
    host = torch.device("cpu")
    # on a CPU there is no other place
    free = {"device": free_bytes(device)} | ({} if device.type == host.type else {"host": free_bytes(host)})
    return choose_place(asked, projected_bytes, free)


def choose_place(asked: ResidencyChoice, projected_bytes: int, free: dict[str, int]) -> Residency:
    """Return where rows are to be kept, with the reason.

    Args:
        asked: by the job.
        projected_bytes: of all rows.
        free: bytes by place; without "host" where that is the device.

    Raises:
        BadRequest: the job says where, and they are larger than the free memory there.
    """
    figures = f"{gib(projected_bytes)} of rows, free: " + ", ".join(f"{at} {gib(free[at])}" for at in free)
    if asked == "host" and "host" not in free:  # on a CPU they are one
        asked = "device"
    if asked == "stream":
        return Residency("stream", projected_bytes, f"the job says so ({figures})")
    if asked != "auto":
        if projected_bytes > free[asked]:  # all of it, not KEPT_SHARE: the job takes it upon itself
            raise BadRequest(
                f"the rows do not fit on the {asked}", found=figures, do='residency = "auto" or "stream" in the job'
            )
        return Residency(asked, projected_bytes, f"the job says so ({figures})")
    places: tuple[Place, ...] = ("device", "host")
    for place in places:
        if projected_bytes <= KEPT_SHARE * free.get(place, 0):
            return Residency(place, projected_bytes, f"{figures}; up to {KEPT_SHARE:.0%}")
    return Residency("stream", projected_bytes, f"{figures}; above {KEPT_SHARE:.0%}")


class FeedPool:
    """Feeds of all students of a job; those that read the same rows share one copy of them.

    Args:
        cache: where rows are.
        device: where batches are to be.
        place: where rows are kept.
        window_shards: of the shuffle.
    """

    def __init__(self, cache: Cache, device: torch.device, *, place: Place, window_shards: int):
        self._cache = cache
        self._device = device
        self._place = place
        self._window_shards = window_shards
        # by datasets and fingerprint of the rows, and the size at which they are decoded
        self._kept: dict[Rows, dict[Name, Kept]] = {}

    def feed(self, selection: Selection, needs: Needs, tick: Tick = lambda done, shards: None) -> Feed:
        """Return a feed of these rows; what no feed before it needed is loaded now, with a `tick` after each shard."""
        of_views = cache(lambda views: self._num_ahead(selection, needs, views))
        of_views(1)  # now, for it may read a feature's shape; each epoch asks
        source = ShardSource(self._cache, selection, of_views)
        arrays: dict[Name, Kept] | None = None
        if self._place != "stream":
            arrays = self._kept.setdefault(_rows(selection), {})
            names = [source.names(needs, view) for view in selection.view_names]
            absent = frozenset[Name]().union(*names) - arrays.keys()
            if absent:
                arrays |= load(source, absent, self._device if self._place == "device" else torch.device("cpu"), tick)
        return Feed(source, needs, self._device, arrays, self._window_shards)

    def _num_ahead(self, selection: Selection, needs: Needs, views: int) -> int:
        """Return how many shards are fetched before they are read: none from a disk of this machine."""
        latency_s = self._cache.objects.latency_s
        return num_ahead(latency_s, sum(largest_shard(selection, needs, views))) if latency_s else 0


def projected_bytes(wanted: Iterable[tuple[Selection, Needs]]) -> int:
    """Return the bytes of all rows of a job, each array counted once."""
    union: dict[Rows, tuple[Selection, int, Needs]] = {}
    for selection, needs in wanted:
        key = _rows(selection)
        _, views, before = union.get(key, (selection, 1, Needs()))
        union[key] = (selection, max(views, len(selection.view_names)), before | needs)
    return sum(
        input_bytes(selection, views=views) + target_bytes(selection, needs, views=views)
        for selection, views, needs in union.values()
    )
