"""Run many tasks: in this process, or on Dask workers. What a task computes is the same in both.

Both are generators that yield (task, what became of it) in any order, with a bounded number of tasks in flight. An
exception in a task is a result; the caller decides whether it ends the build. The traps that shaped `run_on_dask` are
in docs/adr/0003.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, Any

from storage.errors import StillroomError, TryAgain
from teacher_cache.shard_task import Done, Task, perform

if TYPE_CHECKING:
    from distributed import Client

Result = tuple[Task, Done | Exception]
Runner = Callable[[Iterable[Task]], Generator[Result]]

INLINE_THREADS = 2  # one computes, the other reads or writes
TRIES = 3
TICK_S = 1.0
NO_WORKERS_S = 120.0


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
    except Exception as error:
        return task, error


def run_on_dask(client: Client) -> Runner:
    """Return a runner on the workers of a Dask client.

    Raises (the runner):
        TryAgain: the scheduler is gone, or there have been no workers for two minutes.
    """

    def run(tasks: Iterable[Task]) -> Generator[Result]:
        crashed: list[Task] = []
        yield from _run_window(client, tasks, crashed, alone=False)
        # A task whose worker died may be innocent: a neighbour's crash kills the whole process. Alone, it is proven.
        yield from _run_window(client, crashed, [], alone=True)

    return run


def _run_window(client: Client, tasks: Iterable[Task], crashed: list[Task], *, alone: bool) -> Generator[Result]:
    from distributed import KilledWorker

    waiting, running, finished = iter(tasks), {}, queue.SimpleQueue[Any]()

    def submit(task: Task, attempt: int) -> None:
        # A new key for each attempt: Dask would answer an old key with the old error.
        future = client.submit(perform, task, key=f"{task.key}-{time.time_ns():x}", pure=False)
        running[future.key] = (future, task, attempt)
        future.add_done_callback(finished.put)

    workers = _Workers(client)
    try:
        while True:
            window = 1 if alone else workers.window
            for task in islice(waiting, max(0, window - len(running))):
                submit(task, 1)
            if not running:
                return
            workers.check()
            try:
                future = finished.get(timeout=TICK_S)
            except queue.Empty:
                continue
            _, task, attempt = running.pop(future.key)
            if future.status == "cancelled":
                raise TryAgain("the Dask scheduler dropped a task", do="run the same command again; it resumes")
            error = future.exception() if future.status == "error" else None
            if error is None:
                yield task, future.result()
            elif isinstance(error, KilledWorker) and not alone:
                crashed.append(task)
            elif isinstance(error, StillroomError | KilledWorker) or attempt == TRIES:
                yield task, error
            else:
                submit(task, attempt + 1)
    finally:
        client.cancel([future for future, _, _ in running.values()], force=True)


class _Workers:
    """The cluster's size, asked for now and then, and a deadline for one that stays empty."""

    def __init__(self, client: Client):
        self._client = client
        self._asked = self._seen = time.monotonic()
        self.window = 4

    def check(self) -> None:
        """Raise TryAgain if the cluster is lost."""
        if self._client.status != "running":
            raise TryAgain(
                "the Dask scheduler is gone", found=self._client.status, do="run the same command again; it resumes"
            )
        now = time.monotonic()
        if now - self._asked < TICK_S:
            return
        self._asked = now
        threads = sum(self._client.nthreads().values())
        self.window = max(4, 2 * threads)  # with twice the threads, no worker waits for the scheduler between shards
        if threads:
            self._seen = now
        elif now - self._seen > NO_WORKERS_S:
            raise TryAgain(
                f"no Dask workers for {NO_WORKERS_S:.0f} s", do="start workers, then run the same command again"
            )
