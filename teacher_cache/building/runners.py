"""Run much work: what a runner is, and the one that needs no cluster (on Dask: `jobs.cluster.flight`).

A runner is a generator that yields (work, what became of it) in any order, with a bounded number in flight, and before
that, now and then, (work, how far it is). An exception is a result; the caller decides whether it ends the build.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from teacher_cache.work.perform import perform
from teacher_cache.work.pieces import Done, Work
from teacher_cache.work.telling import Underway, telling

Result = tuple[Work, Done | Underway | Exception]
Runner = Callable[[Iterable[Work]], Generator[Result]]

INLINE_THREADS = 2  # one computes, the other reads or writes
TICK_S = 1.0
GRACE_S = 2.0  # for a batch, or a write, that is under way when a signal comes


def run_inline(
    pieces: Iterable[Work], threads: int | None = None, signalled: Callable[[], bool] = lambda: False
) -> Generator[Result]:
    """Run work in this process, so much of it at a time.

    What is under way when this ends early ends at its next batch, without a commit.

    Args:
        pieces: of work.
        threads: how much at a time.
        signalled: whether a signal has come: then a batch that takes longer than GRACE_S is not waited for, and goes
            on in its thread until the process ends.
    """
    threads = threads or INLINE_THREADS
    waiting, said, ended = iter(pieces), queue.SimpleQueue[tuple[Work, Underway]](), threading.Event()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="shard")
    running: set[Future[Result]] = set()

    def start(count: int) -> None:
        running.update(pool.submit(_caught, work, said, ended) for work in islice(waiting, count))

    try:
        start(threads)
        while running:
            # A timeout, so that a signal is not held up by a long shard.
            done, _ = wait(running, timeout=TICK_S, return_when=FIRST_COMPLETED)
            while not said.empty():
                yield said.get()
            for future in done:
                running.discard(future)
                start(1)
                yield future.result()
    finally:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)
        _wait_for(running, signalled)


def _wait_for(running: set[Future[Result]], signalled: Callable[[], bool]) -> None:
    """Wait until all have ended, or for GRACE_S after a signal."""
    until_s: float | None = None
    while running := {future for future in running if not future.done()}:
        if until_s is None and signalled():
            until_s = time.monotonic() + GRACE_S
        if until_s is not None and time.monotonic() > until_s:
            return
        wait(running, timeout=0.1)


def _caught(work: Work, said: queue.SimpleQueue[tuple[Work, Underway]], ended: threading.Event) -> Result:
    try:
        with telling(lambda underway: said.put((work, underway)), lambda: not ended.is_set()):
            return work, perform(work)
    except (Exception, SystemExit) as error:  # a user's code that exits must not end the build as if it were done
        return work, error if isinstance(error, Exception) else RuntimeError(f"SystemExit: {error}")
