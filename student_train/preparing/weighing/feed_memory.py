"""What feeds hold in memory, projected from what is fed and where it is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from storage.format.stores.base import AHEAD_BYTES, MOST_AHEAD
from storage.inputs.encoded import decoding, proven_bytes
from student_train.feed.batches import Needs
from student_train.feed.residency import Residency, array_bytes, largest_shard, row_bytes, shard_bytes
from student_train.feed.selection import Selection
from student_train.feed.sending import AHEAD
from student_train.feed.spans import NARROW_BYTES
from student_train.feed.windows import READERS

READ_COPIES = 3  # of a shard that is being read: stored bytes, decoded ones, and the fed rows on their way to a GPU
ORDER_BYTES = 32  # of a row of a span: its place, its position, what shuffles them, and its label
MIXED_BYTES = 64  # of a row of a mixture's epoch, while its order is made: rows, visits, windows, each of them sorted
PINNED_COPIES = 2  # torch lends pinned memory in powers of two


@dataclass(frozen=True, slots=True)
class FedRows:
    """Rows that a job feeds, for a projection of memory.

    Attributes:
        selection, needs: which ones.
        window_shards: of the shuffle; 1 where rows are read in dataset order.
        batch_size: rows of the largest batch.
        views: that one pass shows.
    """

    selection: Selection
    needs: Needs
    window_shards: int
    batch_size: int
    views: int = 1


class FeedBytes(NamedTuple):
    """What feeds hold, by name: of the host's memory, and of the device's. On a CPU the two are one."""

    host: dict[str, int]
    device: dict[str, int]


def feed_bytes(
    fed: Sequence[FedRows], residency: Residency, device: torch.device, *, held_within: int | None = None
) -> FeedBytes:
    """Return what the feeds of a job hold at their peak, one pass at a time.

    Args:
        fed: of every pass.
        residency: as chosen for them.
        device: where batches are used.
        held_within: from here on `fed` are held rows that are read while others are; None: none are.
    """
    same_time = [fed[:held_within], [] if held_within is None else fed[held_within:]]

    def most(of: Callable[[FedRows], int]) -> int:
        return sum(max(map(of, part), default=0) for part in same_time)

    if residency.place == "stream":
        host = {"shards being read": most(lambda rows: _reading_bytes(rows, rows.views))}
    else:  # one feed after another, before the first step, with all views of its rows
        host = {"shards being read": max(_reading_bytes(rows, len(rows.selection.view_names)) for rows in fed)}
    if any(_encoded(rows) for rows in fed):
        host["pictures being decoded"] = decoding().most_bytes
        host["which pictures were compared"] = proven_bytes(_encoded_rows(fed).values())
    on_device: dict[str, int] = {}
    at = on_device if residency.place == "device" else host
    if residency.place == "stream":
        host["two windows of rows"] = 2 * most(_window_bytes)
    else:
        at["resident rows"] = residency.projected_bytes
    at["rows in order"] = most(lambda rows: _ordered_bytes(rows, residency))
    if device.type == "cuda" and residency.place != "device":
        on_their_way = (AHEAD + 1) * most(lambda rows: rows.batch_size * _row_bytes(rows))  # and the one in use
        host["batches on their way"] = PINNED_COPIES * on_their_way
        on_device["batches on their way"] = on_their_way
    return FeedBytes(host, on_device)


def _row_bytes(rows: FedRows) -> int:
    return row_bytes(rows.selection.catalogue, rows.selection.datasets[0], rows.needs, rows.selection.own)


def _window_rows(rows: FedRows) -> int:
    """Return the rows of the largest window of so many shards, whatever the shuffle."""
    return int(np.sort(rows.selection.shard_sizes_S)[-rows.window_shards :].sum())


def _window_bytes(rows: FedRows) -> int:
    """Return the bytes of the largest window, whatever the shuffle."""
    sizes = sorted(
        shard_bytes(rows.selection, rows.needs, shard, rows.views) for shard in range(len(rows.selection.shards_S))
    )
    return sum(sizes[-rows.window_shards :])


def _reading_bytes(rows: FedRows, views: int) -> int:
    """Return what is in memory of shards that are being read, besides where their rows are to lie.

    Args:
        rows: they.
        views: of which targets are read at a time: a teacher and view after another, but fetched all together.
    """
    num_shards, (decoded_bytes, stored_bytes) = len(rows.selection.shards_S), largest_shard(rows.selection, rows.needs)
    at_once = min(READERS, num_shards)
    reading = at_once * (READ_COPIES * decoded_bytes + stored_bytes)
    if not rows.selection.catalogue.objects.latency_s:
        return reading
    # a pass may need less of a shard than all students do, and then fetches more of them
    fetched_bytes = sum(largest_shard(rows.selection, rows.needs, views))
    ahead_bytes = min(min(MOST_AHEAD, num_shards) * fetched_bytes, AHEAD_BYTES)
    not_its_turn_bytes = min(fetched_bytes - decoded_bytes - stored_bytes, AHEAD_BYTES)  # of a shard that is read
    return reading + at_once * not_its_turn_bytes + ahead_bytes


def _encoded(rows: FedRows) -> bool:
    return any(rows.selection.catalogue.dataset(name).encoded for name in rows.selection.datasets)


def _encoded_rows(fed: Sequence[FedRows]) -> dict[tuple[str, int], int]:
    """Return of each shard of encoded pictures how many rows it has, those that are not fed too."""
    found: dict[tuple[str, int], int] = {}
    for selection in (rows.selection for rows in fed):
        for part in selection.parts:
            if selection.catalogue.dataset(part.dataset).encoded:
                planned = {shard.shard: shard.stop - shard.start for shard in selection.catalogue.shards(part.dataset)}
                shards = [int(selection.shards_S[i]) for i in part.shards]
                found |= {(part.dataset, shard): planned[shard] for shard in shards}
    return found


def _ordered_bytes(rows: FedRows, residency: Residency) -> int:
    """Return what a span's order takes, and the narrow arrays that are put in it."""
    mixture = bool(rows.selection.taken)  # all windows of an epoch are made together then
    in_windows = residency.place == "stream" and not mixture
    num_rows = _window_rows(rows) if in_windows else rows.selection.num_rows
    sizes = array_bytes(rows.selection.catalogue, rows.selection.datasets[0], rows.needs, rows.selection.own)
    narrow = sum(size for size in sizes if size <= NARROW_BYTES)
    return num_rows * (ORDER_BYTES + mixture * MIXED_BYTES + rows.views * narrow)
