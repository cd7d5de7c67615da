"""One unit of work as it travels, what is left of it, and how every one ends: with a commit.

A task is small and frozen, its result a few numbers; data never pass through a scheduler. Two tasks share a process:
while one holds LOCK to compute, the other reads its inputs or writes its arrays.
"""

from __future__ import annotations

import socket
import threading
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from storage.cache import Cache
from storage.format.rows import Extent
from storage.format.shards import ShardKey, write_shard

LOCK = threading.Lock()


class Task(NamedTuple):
    """One unit of work, as it travels: under 2 KB, and a file's name for each row of a folder of images.

    Attributes:
        cache: its address.
        key: which shard.
        start, stop: its rows.
        options: the section of the job that it needs, as JSON: a source for an ingest, else a teacher.
        promise: fingerprint of the teacher's spec; "" for an ingest.
        extents: where the rows of an ingest lie in the source; () for a teacher.
        device: for a teacher: auto, cpu, cuda.
        threads: of torch, in this process.
        richer: address of the cache to recode the shard from; "" asks the source or the teacher.
    """

    cache: str
    key: ShardKey
    start: int
    stop: int
    options: str
    promise: str
    extents: tuple[Extent, ...]
    device: str
    threads: int
    richer: str = ""


class Done(NamedTuple):
    """What is left of a task: `won` is False if another builder had committed the shard already."""

    key: ShardKey
    rows: int
    quarantined: int
    bytes: int
    seconds: float
    won: bool


def provenance(seconds: float) -> dict[str, Any]:
    """Return what every commit says of its own making; `seconds` are those of computing."""
    return {
        "seconds": round(seconds, 4),  # of computing, so that rows over seconds is the rate of one worker
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "stillroom": version("stillroom"),
    }


def commit_shard(
    cache: Cache, task: Task, arrays: dict[str, np.ndarray], table: pa.Table, about: dict[str, Any], quarantined: int
) -> Done:
    """Write a shard's arrays and its commit, and return what became of the task."""
    commit = write_shard(cache.objects, task.key, rows=(task.start, task.stop), arrays=arrays, table=table, about=about)
    num_bytes = 0 if commit is None else sum(stored.size_bytes for stored in commit.objects)
    return Done(task.key, task.stop - task.start, quarantined, num_bytes, about["seconds"], commit is not None)
