"""Run many tasks: what a runner is, and the one that needs no cluster (on Dask: `jobs.cluster.flight`).

A runner is a generator that yields (task, what became of it) in any order, with a bounded number of tasks in flight. An
exception in a task is a result; the caller decides whether it ends the build.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice

from teacher_cache.work.perform import perform
from teacher_cache.work.pieces import Done, Task

Result = tuple[Task, Done | Exception]
Runner = Callable[[Iterable[Task]], Generator[Result]]

INLINE_THREADS = 2  # one computes, the other reads or writes
TICK_S = 1.0


def run_inline(tasks: Iterable[Task]) -> Generator[Result]:
    """Run tasks in this process."""
    waiting = iter(tasks)
    with ThreadPoolExecutor(INLINE_THREADS, thread_name_prefix="shard") as pool:
        running = {pool.submit(_caught, task) for task in islice(waiting, INLINE_THREADS)}
        while running:
            # A timeout, so that a signal is not held up by a long shard.
            done, running = wait(running, timeout=TICK_S, return_when=FIRST_COMPLETED)
            for future in done:
                running |= {pool.submit(_caught, task) for task in islice(waiting, 1)}
                yield future.result()


def _caught(task: Task) -> Result:
    try:
        return task, perform(task)
    except (Exception, SystemExit) as error:  # a user's code that exits must not end the build as if it were done
        return task, error if isinstance(error, Exception) else RuntimeError(f"SystemExit: {error}")
