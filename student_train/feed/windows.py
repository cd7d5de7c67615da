"""Shards into memory, several at a time, straight to where their rows are to lie: all of them, or window by window.

A stream has two blocks of memory and never more: batches are cut from one while the next window is read into the
other. Of a store that is far away some shards are fetched before their window is read, as they are stored.

S rows of a shard, F of them fed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import CorruptObject
from storage.inputs import Stored
from storage.inputs.encoded import ToDecode
from storage.inputs.ragged import Ragged
from student_train.feed.batches import Arrays, Name
from student_train.feed.flat import Flat, Kept
from student_train.feed.order import Window
from student_train.feed.shard_source import Fetched, ShardSource, views_of

# Shards read at a time; each is in memory besides where its rows are to lie (`weighing/feed_memory.py` counts it).
READERS = 4
MOST_THREADS = 64

Tick = Callable[[int, int], None]  # told how many shards of how many are read; may raise to stop


class Block:
    """Memory for the rows of some shards, one tensor for each array, taken when the first rows come.

    Args:
        num_rows: that it can hold.
        device: where it is.
        num_items: of arrays of rows of their own length, how many items of all rows together.
    """

    def __init__(self, num_rows: int, device: torch.device, num_items: Mapping[Name, int] | None = None):
        self.arrays: dict[Name, Kept] = {}
        self._num_rows = num_rows
        self._device = device
        self._num_items = num_items or {}
        self._items: dict[Name, Tensor] = {}  # of rows of their own length
        self._lengths: Mapping[Name, NDArray[np.int64]] = {}
        self._kinds: dict[Name, tuple[tuple[int, ...], np.dtype[Any]]] = {}  # shape of a row or an item, and its type
        self._lock = Lock()

    def begin(self, lengths: Mapping[Name, NDArray[np.int64]]) -> None:
        """Say how long the rows are that are to come, where each has a length of its own; what was there is let go."""
        self._lengths = lengths
        for name in self._items:
            self.arrays[name] = Flat(self._items[name], lengths[name])

    def fill(self, coming: Coming, place: int, start: int) -> None:
        """Read the shard at a place of an order, its first fed row to row `start`.

        Raises:
            StaleCache, CorruptObject: as `ShardSource.reading`; or there are too few rows, or rows of another type.
        """
        source, index = coming.source, coming.shards[place]
        with coming.reading(place) as arrays:
            for name, stored_S in arrays:
                if isinstance(stored_S, Ragged):
                    self._fill_flat(source, index, name, stored_S, start)
                else:
                    values_S = stored_S if isinstance(stored_S, ToDecode) else _signed(stored_S)
                    self._fill_rows(source, index, name, values_S, start)

    def _fill_rows(
        self, source: ShardSource, index: int, name: Name, values_S: NDArray[Any] | ToDecode, start: int
    ) -> None:
        rows_F = source.selection.rows[index]
        if not self._has_room(name, values_S) or rows_F[-1] >= len(values_S):
            raise self._unlike(source, index, name, values_S, f"{rows_F[-1] + 1} rows or more")
        held = self.arrays[name]
        assert isinstance(held, Tensor)
        rows = held[start : start + len(rows_F)]
        # for a GPU the rows are put together on the host first
        host = rows if rows.device.type == "cpu" else torch.empty_like(rows, device="cpu")
        if isinstance(values_S, ToDecode):
            values_S.decode(host.numpy())
        elif len(rows_F) == len(values_S):
            host.numpy()[...] = values_S
        else:
            np.take(values_S, rows_F, axis=0, out=host.numpy(), mode="clip")  # other modes buffer what they write
        if host is not rows:
            rows.copy_(host)

    def _fill_flat(self, source: ShardSource, index: int, name: Name, stored_S: Ragged, start: int) -> None:
        rows_F, items_T = source.selection.rows[index], _signed(stored_S.flat_T)
        expected = self._lengths[name][start : start + len(rows_F)]
        # of too few rows none are as expected
        found = stored_S.lengths[rows_F] if rows_F[-1] < len(stored_S) else stored_S.lengths
        if not np.array_equal(found, expected):
            raise CorruptObject(
                f"{source.selection.key(index)}: {name} has rows of other lengths than its commit says",
                found=f"{found.sum()} tokens in {len(found)} rows",
                expected=f"{expected.sum()} tokens in {len(expected)} rows  (column `length`)",
                do="see what `cache verify` says of it",
            )
        if not self._has_room(name, items_T):
            raise self._unlike(source, index, name, items_T, "items")
        held = self.arrays[name]
        assert isinstance(held, Flat)
        held.put(Ragged(items_T, stored_S.offsets).take(rows_F), start)

    def _has_room(self, name: Name, values_S: NDArray[Any] | ToDecode) -> bool:
        """Take the memory of an array if these are its first rows, or items; return whether it is for such as these."""
        shape, dtype = kind = (values_S.shape[1:], values_S.dtype)
        with self._lock:  # several readers come with first rows
            if name not in self.arrays:
                self._kinds[name] = kind
                if name in self._lengths:
                    self._items[name] = _empty((self._num_items[name], *shape), dtype, self._device)
                    self.arrays[name] = Flat(self._items[name], self._lengths[name])
                else:
                    self.arrays[name] = _empty((self._num_rows, *shape), dtype, self._device)
        return kind == self._kinds[name]

    def _unlike(
        self, source: ShardSource, index: int, name: Name, values_S: NDArray[Any] | ToDecode, expected: str
    ) -> CorruptObject:
        shape, dtype = self._kinds[name]
        return CorruptObject(
            f"{source.selection.key(index)}: {name} is not as in others",
            found=f"{len(values_S)} rows of {values_S.shape[1:]} {values_S.dtype}",
            expected=f"{expected} of {shape} {dtype}",
            do="see what `cache verify` says of it",
        )


class Coming:
    """Shards that are read in an order that is known: so many are fetched ahead as their source says (`num_ahead`).

    Args:
        source: of the shards.
        names: of the arrays.
        shards: as numbered among `shards_S`, in the order in which they are wanted.
    """

    def __init__(self, source: ShardSource, names: frozenset[Name], shards: Sequence[int]):
        self.source, self.shards = source, shards
        self._names = names
        self._num_ahead = min(source.num_ahead(len(views_of(names))), len(shards))
        # of each place, in the order in which they are wanted: two names of one teacher want the same
        self._fetched: dict[int, deque[Future[Fetched]]] = {}
        self._next = 0  # to be fetched
        self._lock = Lock()
        num_threads = self._num_ahead * len(source.wanted(shards[0], names)) if shards else 0
        self._pool = ThreadPoolExecutor(min(max(1, num_threads), MOST_THREADS), thread_name_prefix="feed-ahead")

    def reading(self, place: int) -> AbstractContextManager[Iterator[tuple[Name, Stored | ToDecode]]]:
        """Give the arrays of the shard at a place, and have others fetched meanwhile; as `ShardSource.reading`."""
        if not self._num_ahead:
            return self.source.reading(self.shards[place], self._names)
        with self._lock:
            while self._next < min(place + 1 + self._num_ahead, len(self.shards)):
                wanted = self.source.wanted(self.shards[self._next], self._names)
                self._fetched[self._next] = deque(self._pool.submit(self.source.fetch, each) for each in wanted)
                self._next += 1
            fetched = self._fetched.pop(place)
        return self.source.reading(self.shards[place], self._names, lambda wanted: fetched.popleft().result())

    def close(self) -> None:
        """Wait for what is being fetched, and fetch no more."""
        self._pool.shutdown(cancel_futures=True)


def load(
    source: ShardSource,
    names: frozenset[Name],
    device: torch.device,
    tick: Tick = lambda done, shards: None,
) -> dict[Name, Kept]:
    """Return the named arrays of all fed rows, in dataset order.

    Raises:
        StaleCache, CorruptObject: as `ShardSource.reading`.
    """
    sizes_S = source.selection.shard_sizes_S
    block = _block(source, [range(len(sizes_S))], device, names)
    coming = Coming(source, names, range(len(sizes_S)))
    with closing(coming), _readers(len(sizes_S)) as readers:
        reading = _fill(readers, block, coming, range(len(sizes_S)), names)
        # as they are done, so that the first failure is told at once
        for done, shard in enumerate(as_completed(reading), start=1):
            shard.result()
            tick(done, len(sizes_S))
    return block.arrays


def load_shard(source: ShardSource, index: int, names: frozenset[Name]) -> Arrays:
    """Return the named arrays of the fed rows of shard `shards_S[index]`, on the host; raises as `load`.

    Those of rows of their own length are flat: the items of the first row, then those of the second, …
    """
    rows_F, arrays = source.selection.rows[index], {}
    with source.reading(index, names) as read:
        for name, stored_S in read:
            if isinstance(stored_S, ToDecode):
                arrays[name] = torch.from_numpy(stored_S.decode(None))
                continue
            chosen = stored_S.take(rows_F).flat_T if isinstance(stored_S, Ragged) else stored_S[rows_F]
            arrays[name] = torch.from_numpy(_signed(chosen))
    return arrays


def read_windows(source: ShardSource, windows: Sequence[Window], names: frozenset[Name]) -> Iterator[dict[Name, Kept]]:
    """Yield the named arrays of each window, its shards one after another; valid until the next one is asked for.

    Raises:
        StaleCache, CorruptObject: as `ShardSource.reading`, when the window is asked for.
    """
    host = torch.device("cpu")
    # one window needs but one
    blocks = [_block(source, [window.shards for window in windows], host, names) for _ in windows[:2]]
    coming = Coming(source, names, [shard for window in windows for shard in window.shards])
    begins = np.cumsum([0, *(len(window.shards) for window in windows)]).tolist()
    places = [range(begin, end) for begin, end in pairwise(begins)]
    with closing(coming), _readers(max(map(len, places))) as readers:
        reading = _fill(readers, blocks[0], coming, places[0], names)
        for number in range(len(windows)):
            read, reading = reading, []
            if number + 1 < len(windows):  # the block of the window before this one, of which nothing is wanted now
                reading = _fill(readers, blocks[(number + 1) % 2], coming, places[number + 1], names)
            _finish(read)
            yield blocks[number % 2].arrays


def _block(source: ShardSource, sets: Sequence[Sequence[int]], device: torch.device, names: frozenset[Name]) -> Block:
    """Return memory for the fed rows of each of some sets of shards, one set at a time."""
    sizes_S = source.selection.shard_sizes_S
    num_items: dict[Name, int] = {}
    for shards in sets:
        for name, lengths_P in source.lengths(names, shards).items():
            num_items[name] = max(num_items.get(name, 0), int(lengths_P.sum()))
    return Block(max(int(sizes_S[list(shards)].sum()) for shards in sets), device, num_items)


@contextmanager
def _readers(num_shards: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads; at the end, however it comes, wait for the shards that are being read and no other."""
    pool = ThreadPoolExecutor(min(READERS, num_shards), thread_name_prefix="feed")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(
    readers: ThreadPoolExecutor, block: Block, coming: Coming, places: range, names: frozenset[Name]
) -> list[Future[None]]:
    """Begin to read the shards at some places of an order into a block, one after another."""
    source, shards = coming.source, coming.shards[places.start : places.stop]
    block.begin(source.lengths(names, shards))
    starts = np.cumsum([0, *source.selection.shard_sizes_S[list(shards)]]).tolist()
    # not strict: the last start is where the rows end
    return [readers.submit(block.fill, coming, place, start) for place, start in zip(places, starts, strict=False)]


def _finish(reading: Sequence[Future[None]]) -> None:
    """Wait until all are read; raise what the first of them that failed has raised."""
    for shard in reading:
        shard.result()


def _signed(values: NDArray[Any]) -> NDArray[Any]:
    """Return an array as torch takes it: few of its operations take uint16."""
    return values.view(np.int16) if values.dtype == np.uint16 else values


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any], device: torch.device) -> Tensor:
    """Return memory; on a host by NumPy, which asks for huge pages: they take a fifth of the time to map."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, dtype))
    # NumPy's type as torch's
    return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device=device)
