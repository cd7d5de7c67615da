"""Run many tasks: in this process, or on Dask workers. What a task computes is the same in both.

Both are generators that yield (task, what became of it) in any order, with a bounded number of tasks in flight. An
exception in a task is a result; the caller decides whether it ends the build. The traps that shaped `run_on_dask` are
in docs/adr/0003.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, Any

from storage.errors import StillroomError, TryAgain
from teacher_cache.shard_task import perform
from teacher_cache.tasks import Done, Task

if TYPE_CHECKING:
    from distributed import Client, Future

Result = tuple[Task, Done | Exception]
Runner = Callable[[Iterable[Task]], Generator[Result]]

INLINE_THREADS = 2  # one computes, the other reads or writes
TRIES = 3
TICK_S = 1.0
RESULT_S = 60.0  # a few numbers that a worker holds
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
    except (Exception, SystemExit) as error:  # a user's code that exits must not end the build as if it were done
        return task, error if isinstance(error, Exception) else RuntimeError(f"SystemExit: {error}")


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
    """Run tasks on Dask, a window at a time or one alone; append those that are suspected of a crash to `crashed`."""
    waiting, flight = iter(tasks), _Flight(client)
    try:
        while True:
            room = (1 if alone else flight.window) - len(flight.running)
            for task in islice(waiting, max(0, room)):
                flight.submit(task, 1)
            if not flight.running:
                return
            for task, attempt, result in flight.landed():
                if isinstance(result, WorkerDied) and not alone:
                    crashed.append(task)
                elif isinstance(result, Done | StillroomError | WorkerDied) or attempt == TRIES:
                    yield task, result
                else:
                    flight.submit(task, attempt + 1)
    finally:
        flight.cancel()


class WorkerDied(Exception):
    """A task's worker died, as often as Dask tries; most often out of memory, or of a crash in a teacher's own code."""


class _Flight:
    """The tasks in flight on a cluster.

    Attributes:
        running: Dask key → its future, task and attempt.
        window: how many there should be.
    """

    def __init__(self, client: Client):
        self.running: dict[str, tuple[Any, Task, int]] = {}
        self.window = 4
        self._client = client
        self._finished = queue.SimpleQueue[Any]()
        self._asked_s = self._seen_s = time.monotonic()

    def submit(self, task: Task, attempt: int) -> None:
        # A new key for each attempt: Dask would answer an old key with the old error.
        key = f"{task.key}-{time.time_ns():x}"
        future = self._client.submit(perform, task, key=key, pure=False)
        self.running[key] = (future, task, attempt)
        future.add_done_callback(self._finished.put)

    def landed(self) -> list[tuple[Task, int, Done | Exception]]:
        """Return at most one task with its attempt and result; none after a tick. Raises TryAgain."""
        try:
            self._check_workers()
            future = self._finished.get(timeout=TICK_S)
            _, task, attempt = self.running.pop(future.key)
            return [(task, attempt, _result(future))]
        except queue.Empty:
            return []
        except (OSError, CancelledError) as error:  # of Dask's own connections; those of a task are results
            raise _scheduler_gone(str(error) or type(error).__name__) from None

    def cancel(self) -> None:
        """Give up what is in flight."""
        if self.running and self._client.status == "running":
            with contextlib.suppress(OSError, CancelledError):  # the scheduler may go at this very moment
                self._client.cancel([future for future, _, _ in self.running.values()], force=True)

    def _check_workers(self) -> None:
        if self._client.status != "running":
            raise _scheduler_gone(self._client.status)
        now = time.monotonic()
        if now - self._asked_s < TICK_S:
            return
        self._asked_s = now
        threads = sum(self._client.nthreads().values())
        self.window = max(4, 2 * threads)  # with twice the threads, no worker waits for the scheduler between shards
        if threads:
            self._seen_s = now
        elif now - self._seen_s > NO_WORKERS_S:
            raise TryAgain(
                f"no Dask workers for {NO_WORKERS_S:.0f} s", do="start workers, then run the same command again"
            )


def _result(future: Future[Any]) -> Done | Exception:
    """Return what a finished future holds."""
    from distributed import KilledWorker

    if future.status == "cancelled":
        raise CancelledError("it dropped a task")
    if future.status == "error":
        error = future.exception(timeout=RESULT_S)
        if not isinstance(error, KilledWorker):
            return error if isinstance(error, Exception) else RuntimeError(repr(error))
    else:
        # A result is lost with the worker that holds it, and then Dask runs the task again, perhaps beside a killer.
        with contextlib.suppress(KilledWorker):
            return Done(*future.result(timeout=RESULT_S))
    return WorkerDied("its worker died each time; look at the worker's log, and at its memory")


def _scheduler_gone(found: str) -> TryAgain:
    return TryAgain("the Dask scheduler is gone", found=found, do="run the same command again; it resumes")
