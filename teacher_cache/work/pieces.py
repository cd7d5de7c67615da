"""A piece of work as it travels, what is left of it, and how each one ends: with a commit.

Work is small and frozen, its result a few numbers; data never pass through a scheduler. Several share a process:
while one holds LOCK to compute, the others read their inputs or write their arrays.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache as kept
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from storage.cache import Cache
from storage.format.rows import Extent
from storage.format.shards import ShardKey
from storage.inputs.ragged import Ragged

_waited_s: weakref.WeakKeyDictionary[threading.Thread, float] = weakref.WeakKeyDictionary()
_waiting_since_s: weakref.WeakKeyDictionary[threading.Thread, float] = weakref.WeakKeyDictionary()


class Turns:
    """Lets so many threads of this process in at a time, and knows how long each has waited."""

    def __init__(self, count: int):
        self._free = threading.BoundedSemaphore(count)

    def __enter__(self) -> None:
        me = threading.current_thread()
        began_s = _waiting_since_s[me] = time.monotonic()
        self._free.acquire()
        _waited_s[me] = _waited_s.get(me, 0.0) + time.monotonic() - began_s
        del _waiting_since_s[me]

    def __exit__(self, *error: object) -> None:
        self._free.release()


def waited_s(thread: threading.Thread) -> float:
    """Return how long a thread has waited for its turns so far, the one that it waits for now among them."""
    since_s = _waiting_since_s.get(thread)
    return _waited_s.get(thread, 0.0) + (0.0 if since_s is None else time.monotonic() - since_s)


LOCK = Turns(1)  # of this process, whose work is on threads of its own
TURNS_AHEAD = 3  # shards that may lie on a GPU: one is asked about, one is there, one is on its way
TURNS = Turns(TURNS_AHEAD)  # more threads than that may write


class IngestWork(NamedTuple):
    """Ingest one shard: under 2 KB, and a file's name for each row of a folder of images.

    Attributes:
        cache: its address.
        key: which shard.
        rows: [start, stop).
        source: the job's `[[dataset]]`, as JSON.
        extents: where the rows lie in the source.
    """

    cache: str
    key: ShardKey
    rows: tuple[int, int]
    source: str
    extents: tuple[Extent, ...]


class AskWork(NamedTuple):
    """Ask a teacher about one shard.

    Attributes:
        cache: its address.
        key: which shard.
        rows: [start, stop).
        teacher: the job's `[[teacher]]`, as JSON.
        promise: its spec, as JSON.
        job: the job's file, for messages.
        device: auto, cpu or cuda.
        threads: of torch, in this process.
    """

    cache: str
    key: ShardKey
    rows: tuple[int, int]
    teacher: str
    promise: str
    job: str
    device: str
    threads: int


class RecodeWork(NamedTuple):
    """Make one shard from the same shard of a richer cache.

    Attributes:
        cache: address of the one to write.
        key: which shard of both; an ingest is copied as it is.
        richer: address of the one to read.
        device, threads: as of AskWork.
    """

    cache: str
    key: ShardKey
    richer: str
    device: str
    threads: int


Work = IngestWork | AskWork | RecodeWork


class Done(NamedTuple):
    """What is left of a piece of work.

    Attributes:
        won: False if another builder had committed the shard already.
        cut: rows of an ingest that were longer than the dataset takes.
        remarks: what is to be told of its samples, and of how many.
        packed: documents and tokens of the rows of an ingest, where several documents may be in one.
        batch_size: rows that a teacher was asked about at a time, where as many as the job says did not fit.
    """

    key: ShardKey
    rows: int
    quarantined: int
    bytes: int
    seconds: float
    won: bool
    cut: int = 0
    remarks: tuple[tuple[str, int], ...] = ()
    batch_size: int | None = None
    packed: tuple[int, int] = (0, 0)


def provenance(seconds: float) -> dict[str, Any]:
    """Return what every commit says of its own making; `seconds` are those of computing."""
    return {
        "seconds": round(seconds, 4),  # of computing, so that rows over seconds is the rate of one worker
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "stillroom": _version(),
    }


@kept
def _version() -> str:
    return version("stillroom")  # which parses a file of some kilobytes


def commit_shard(
    cache: Cache,
    key: ShardKey,
    rows: tuple[int, int],
    *,
    arrays: Mapping[str, np.ndarray | Ragged],
    table: pa.Table,
    about: dict[str, Any],
    quarantined: int = 0,
    uses: tuple[str, ...] = (),
) -> Done:
    """Write a shard's arrays and its commit, and return what became of the work; `about` has a `provenance`."""
    commit = cache.write_shard(key, rows=rows, arrays=arrays, table=table, about=about, uses=uses)
    num_bytes = 0 if commit is None else commit.size_bytes
    return Done(key, rows[1] - rows[0], quarantined, num_bytes, about["seconds"], commit is not None)
