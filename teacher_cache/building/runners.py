"""Run much work: what a runner is, and the one that needs no cluster (on Dask: `jobs.cluster.flight`).

A runner is a generator that yields (work, what became of it) in any order, with a bounded number in flight, and before
that, now and then, (work, how far it is). An exception is a result; the caller decides whether it ends the build.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice

from teacher_cache.work.perform import perform
from teacher_cache.work.pieces import Done, Work
from teacher_cache.work.telling import Underway, telling

Result = tuple[Work, Done | Underway | Exception]
Runner = Callable[[Iterable[Work]], Generator[Result]]

INLINE_THREADS = 2  # one computes, the other reads or writes
TICK_S = 1.0


def run_inline(pieces: Iterable[Work], threads: int | None = None) -> Generator[Result]:
    """Run work in this process, so much of it at a time."""
    threads = threads or INLINE_THREADS
    waiting, said = iter(pieces), queue.SimpleQueue[tuple[Work, Underway]]()
    with ThreadPoolExecutor(threads, thread_name_prefix="shard") as pool:
        running = {pool.submit(_caught, work, said) for work in islice(waiting, threads)}
        while running:
            # A timeout, so that a signal is not held up by a long shard.
            done, running = wait(running, timeout=TICK_S, return_when=FIRST_COMPLETED)
            while not said.empty():
                yield said.get()
            for future in done:
                running |= {pool.submit(_caught, work, said) for work in islice(waiting, 1)}
                yield future.result()


def _caught(work: Work, said: queue.SimpleQueue[tuple[Work, Underway]]) -> Result:
    try:
        with telling(lambda underway: said.put((work, underway))):
            return work, perform(work)
    except (Exception, SystemExit) as error:  # a user's code that exits must not end the build as if it were done
        return work, error if isinstance(error, Exception) else RuntimeError(f"SystemExit: {error}")
