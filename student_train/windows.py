"""Shards into memory, several at a time, straight to where their rows are to lie: all of them, or window by window.

A stream has two blocks of memory and never more: batches are cut from one while the next window is read into the
other.

S rows of a shard, F of them fed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import CorruptObject
from student_train.order import Window
from student_train.shard_source import Name, ShardSource

READERS = 4  # shards read at a time; each is in memory besides where its rows are to lie (`residency.py` counts it)

Arrays = dict[Name, Tensor]
Tick = Callable[[int, int], None]  # told how many shards of how many are read; may raise to stop


class Block:
    """Memory for the rows of some shards, one tensor for each array, taken when the first rows come.

    Args:
        num_rows: that it can hold.
        device: where it is.
    """

    def __init__(self, num_rows: int, device: torch.device):
        self.arrays: Arrays = {}
        self._num_rows = num_rows
        self._device = device
        self._lock = Lock()

    def fill(self, source: ShardSource, index: int, names: frozenset[Name], start: int) -> None:
        """Read shard `shards_S[index]`, its first fed row to row `start`. Raises what `ShardSource.read` does."""
        rows_F = source.selection.rows[index]
        for name, values_S in source.read(index, names):
            part = self._room(source, index, name, values_S)[start : start + len(rows_F)]
            stored_S = _as_tensor(values_S)
            if len(rows_F) == len(values_S):
                part.copy_(stored_S)
            elif part.device == stored_S.device:
                torch.index_select(stored_S, 0, torch.from_numpy(rows_F), out=part)
            else:
                part.copy_(stored_S.index_select(0, torch.from_numpy(rows_F)))

    def _room(self, source: ShardSource, index: int, name: Name, values_S: NDArray[Any]) -> Tensor:
        found = _as_tensor(values_S[:1])
        with self._lock:
            if name not in self.arrays:
                shape = (self._num_rows, *values_S.shape[1:])
                if self._device.type == "cpu":  # NumPy asks for huge pages: a fifth of the time to map, and to gather
                    self.arrays[name] = _as_tensor(np.empty(shape, values_S.dtype))
                else:
                    self.arrays[name] = torch.empty(shape, dtype=found.dtype, device=self._device)
            room = self.arrays[name]
        if (room.shape[1:], room.dtype) != (found.shape[1:], found.dtype):
            raise CorruptObject(
                f"{source.selection.dataset}: {name} of shard {source.selection.shards_S[index]} is not as in others",
                found=f"rows of {tuple(found.shape[1:])} {found.dtype}",
                expected=f"{tuple(room.shape[1:])} {room.dtype}",
                do="see what `cache verify` says of it",
            )
        return room


def load(
    source: ShardSource,
    names: frozenset[Name],
    device: torch.device,
    tick: Tick = lambda done, shards: None,
) -> Arrays:
    """Return the named arrays of all fed rows, in dataset order.

    Raises:
        StaleCache, CorruptObject: as `ShardSource.read`.
    """
    sizes_S = source.selection.shard_sizes_S
    block = Block(int(sizes_S.sum()), device)
    with _readers(len(sizes_S)) as readers:
        reading = _fill(readers, block, source, tuple(range(len(sizes_S))), names)
        for done, shard in enumerate(as_completed(reading), start=1):
            shard.result()
            tick(done, len(sizes_S))
    return block.arrays


def load_shard(source: ShardSource, index: int, names: frozenset[Name]) -> Arrays:
    """Return the named arrays of the fed rows of shard `shards_S[index]`, on the host. Raises as `load`."""
    host = Block(int(source.selection.shard_sizes_S[index]), torch.device("cpu"))
    host.fill(source, index, names, 0)
    return host.arrays


def read_windows(source: ShardSource, windows: Sequence[Window], names: frozenset[Name]) -> Iterator[Arrays]:
    """Yield the named arrays of each window, its shards one after another; valid until the next one is asked for.

    Raises:
        StaleCache, CorruptObject: as `ShardSource.read`, when the window is asked for.
    """
    host = torch.device("cpu")
    blocks = [Block(max(window.stop - window.start for window in windows), host) for _ in windows[:2]]
    with _readers(max(len(window.shards) for window in windows)) as readers:
        reading = _fill(readers, blocks[0], source, windows[0].shards, names)
        for number in range(len(windows)):
            coming, reading = reading, []
            if number + 1 < len(windows):  # the block of the window before this one, of which nothing is wanted now
                reading = _fill(readers, blocks[(number + 1) % 2], source, windows[number + 1].shards, names)
            _finish(coming)
            yield blocks[number % 2].arrays


@contextmanager
def _readers(num_shards: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; at the end, however it comes, wait for the shards that are being read and no other."""
    pool = ThreadPoolExecutor(min(READERS, num_shards), thread_name_prefix="feed")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(
    readers: ThreadPoolExecutor, block: Block, source: ShardSource, shards: Sequence[int], names: frozenset[Name]
) -> list[Future[None]]:
    """Begin to read shards into a block, one after another."""
    starts = np.cumsum([0, *source.selection.shard_sizes_S[list(shards)]]).tolist()
    return [
        readers.submit(block.fill, source, index, names, start) for index, start in zip(shards, starts, strict=False)
    ]


def _finish(reading: Sequence[Future[None]]) -> None:
    """Wait until all are read; raise what the first of them that failed has raised."""
    for shard in reading:
        shard.result()


def _as_tensor(values: NDArray[Any]) -> Tensor:
    """Return a tensor over an array's memory; bits of bf16 as int16, since few operations take uint16."""
    return torch.from_numpy(values.view(np.int16) if values.dtype == np.uint16 else values)
