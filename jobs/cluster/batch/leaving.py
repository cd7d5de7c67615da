"""Workers whose job will end: none begins work that cannot end in it, and each leaves before it is ended.

Whoever starts such a worker says in its environment when that is.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from jobs.cluster.limits import Late, within_s
from storage.errors import BadRequest, Overdue, duration

if TYPE_CHECKING:
    from distributed import Worker

ENDS, LIMIT = "STILLROOM_JOB_ENDS_S", "STILLROOM_JOB_LIMIT_S"  # seconds since 1970; of the whole job
TOLD_S = 1.0  # until what a worker has done is told

W = TypeVar("W")
R = TypeVar("R")


class _Done:
    """What this process has done, and is at."""

    def __init__(self) -> None:
        self.longest_s, self.underway, self.lock = 0.0, 0, threading.Lock()


_done = _Done()


def left_s() -> float:
    """Return the seconds that this worker may still work, less what it takes to leave; inf if its job has no end."""
    ends, limit = os.environ.get(ENDS), os.environ.get(LIMIT)
    if ends is None or limit is None:
        return float("inf")
    return float(ends) - time.time() - margin_s(float(limit))


def margin_s(limit_s: float) -> float:
    """Return the seconds that a worker needs to leave a job of a time limit: a twentieth of it, 10 to 60 s.

    >>> margin_s(60), margin_s(600), margin_s(14400)
    (10, 30.0, 60)
    """
    return min(60, max(10, limit_s / 20))


def in_time(perform: Callable[[W], R], work: W) -> R:
    """Return what `perform` makes of some work, on a worker, if its job leaves the time; else leave it to another one.

    What is not done in time although it had more than half of a job would not be done in the next one either.

    Args:
        perform: does it.
        work: has a `key`.

    Raises:
        BadRequest: the time limit of a job is too short for this work.
        Overdue: there was no time left when this worker came.
        Reschedule: Dask gives the work to another worker; this one leaves.
    """
    from distributed import Reschedule, get_worker

    had_s, began_s = left_s(), time.monotonic()
    if had_s == float("inf"):
        return perform(work)
    worker = get_worker()
    if had_s < max(_done.longest_s, 1.0):
        leave(worker)
        if _done.longest_s:
            raise Reschedule
        raise Overdue(
            f"{work.key} was not begun: the time of each job was over when its worker came",  # type: ignore[attr-defined]
            found=f"a job of {duration(float(os.environ[LIMIT]))}, less what the worker takes to start and to leave",
            do="raise `time` in [cluster], or the job's own --time",
        )
    with _done.lock:
        _done.underway += 1
    try:
        result = within_s(had_s, perform, lambda thread: 0.0, work)
    except Late:
        leave(worker)
        limit_s = float(os.environ[LIMIT])
        if had_s < limit_s / 2:
            raise Reschedule from None
        raise BadRequest(
            f"{work.key} takes longer than a job of this cluster may",  # type: ignore[attr-defined]
            found=f"not done after {duration(had_s)}, at the end of a job of {duration(limit_s)}",
            expected="a time limit that is several times a shard's time; the first one loads the teacher too",
            do="raise `time` in [cluster], or the job's own --time; or lower rows_per_shard, in a new cache (--as)",
        ) from None
    finally:
        with _done.lock:
            _done.underway -= 1
    _done.longest_s = max(_done.longest_s, time.monotonic() - began_s)
    return result


def leave(worker: Worker) -> None:
    """Let this worker take no more work, and end when what it has is done and told."""
    worker.loop.add_callback(_leave, worker)


async def _leave(worker: Worker) -> None:
    from distributed.core import Status

    if worker.status != Status.running:
        return
    worker.status = Status.paused
    while _done.underway:
        await asyncio.sleep(0.1)
    await asyncio.sleep(TOLD_S)
    await worker.close(reason="the time of its job is over", executor_wait=False)
