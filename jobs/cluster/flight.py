"""Run work on the workers of a Dask client, a bounded amount at a time. What it is, only the two rooms know.

A generator that yields (work, what became of it) in any order. An exception in it is a result; the caller decides
whether it ends the command. The traps that shaped this are in docs/adr/0003.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from jobs.cluster.attendance import Attendance
from jobs.cluster.sending import opener, packed, refused_by
from storage.errors import Interrupted, Overdue, StillroomError, TryAgain, WorkerDied

if TYPE_CHECKING:
    from distributed import Client, Future

TRIES = 3  # of work that takes too long, or raises what is no error of ours
TICK_S = 1.0
RESULT_S = 60.0  # a few numbers that a worker holds
PREFIX = "work"  # of all keys: of one sort to Dask


class Left(Exception):
    """A worker left before its work was done, and kept what there is of it."""


class Named(Protocol):
    """Work: anything small with a name for its Dask key."""

    @property
    def key(self) -> object: ...


W = TypeVar("W", bound=Named)
R = TypeVar("R")

Places = Callable[[Mapping[str, int], Sequence[str | None]], Sequence[str | None]]
"""(address → threads of every worker, places of what is in flight) → places that are free: an address, or None for any.

A list rather than a count, so that work can have a worker to itself.
"""


def window(workers: Mapping[str, int], taken: Sequence[str | None]) -> list[None]:
    """Let twice the threads be in flight, so that no worker waits for the scheduler."""
    return [None] * (max(4, 2 * sum(workers.values())) - len(taken))


def alone(workers: Mapping[str, int], taken: Sequence[str | None]) -> list[None]:
    """Let one be in flight at a time."""
    return [None] * (1 - len(taken))


def one_each(workers: Mapping[str, int], taken: Sequence[str | None]) -> list[str]:
    """Let each worker have one, however many threads it has."""
    return [address for address in workers if address not in taken]


def run_work(
    client: Client,
    perform: Callable[[W], R],
    todo: Iterable[W],
    *,
    places: Places,
    deaths: int = 0,
    going_on: Callable[[], bool] = lambda: True,
    heard: Callable[[], Iterable[tuple[str, R]]] = tuple,
    attendance: Attendance | None = None,
    progress: Callable[[W], int] = lambda work: 0,
) -> Generator[tuple[W, R | Exception]]:
    """Run work on Dask, some of it at a time.

    An error of ours is a fact about the request and is a result at once; anything else that is raised is tried again,
    as is what took too long (`jobs.cluster.limits`).

    Args:
        client: whose workers run them.
        perform: does it, on a worker; both sides import it by its name.
        todo: taken up as places become free.
        places: says which are.
        deaths: how many deaths of its worker each survives by being submitted again, beyond what the scheduler
            does of itself.
        going_on: called about once a second; when it returns False nothing more is submitted, and what is in flight
            is waited for.
        heard: called as often; what workers have said meanwhile of the work with a key, which is yielded with it.
        attendance: looks after the workers.
        progress: how far work has come; what has come further since it failed the last time has failed the first time.

    Raises:
        BadRequest: a worker cannot import what this command is made of, or workers cannot come.
        TryAgain: the scheduler is gone, or there have been no workers for too long.
    """
    fresh, again = map(_Attempt, todo), deque[_Attempt[W]]()
    flight, all_begun = _Flight[W, R](client, perform, attendance or Attendance()), False
    try:
        while True:
            beginning = going_on()
            begun: dict[str | None, list[_Attempt[W]]] = {}
            for place in places(flight.look(), flight.places) if beginning else ():
                attempt = again.popleft() if again else next(fresh, None)
                if attempt is None:
                    all_begun = True
                    break
                begun.setdefault(place, []).append(attempt)
            for place, attempts in begun.items():
                flight.submit(attempts, place)
            if not flight.running and (not beginning or (all_begun and not again)):
                return
            for key, said in heard():
                yield from ((work, said) for work in flight.of(key))
            for attempt, result in flight.landed():
                another = attempt.after(result, deaths, progress(attempt.work))
                if another is None:
                    yield attempt.work, result
                else:
                    again.append(another)
    finally:
        flight.cancel()


def wait_for_workers(client: Client, stop: Callable[[], bool], attendance: Attendance) -> int:
    """Return how many workers there are, once there are any.

    Raises:
        Interrupted: `stop` said so.
        BadRequest: none can come.
        TryAgain: none has come for too long, or the scheduler is gone.
    """
    with _told_of_loss():
        while not (workers := client.nthreads()):
            if stop():
                raise Interrupted("stopped before there were workers")
            attendance.look(client, workers)
            time.sleep(TICK_S)
        attendance.look(client, workers)
    return len(workers)


class _Attempt(NamedTuple, Generic[W]):
    """Work, how often it has failed so far, and how far it had come then."""

    work: W
    errors: int = 0
    deaths: int = 0
    progress: int = 0

    def after(self, result: object, deaths: int, progress: int = 0) -> _Attempt[W] | None:
        """Return the next attempt after this result, or None if the result stands."""
        if progress > self.progress and isinstance(result, WorkerDied | Left):
            return _Attempt(self.work, progress=progress)
        if isinstance(result, WorkerDied):
            return self._replace(deaths=self.deaths + 1) if self.deaths < deaths else None
        if not isinstance(result, Exception) or (
            isinstance(result, StillroomError) and not isinstance(result, Overdue)
        ):
            return None
        return self._replace(errors=self.errors + 1) if self.errors + 1 < TRIES else None


class _Flying(NamedTuple, Generic[W]):
    future: Any
    attempt: _Attempt[W]
    place: str | None


class _Flight(Generic[W, R]):
    """The work in flight on a cluster.

    Attributes:
        running: Dask key → its future, attempt and place.
    """

    def __init__(self, client: Client, perform: Callable[[W], R], attendance: Attendance):
        self.running: dict[str, _Flying[W]] = {}
        self._client, self._perform, self._attendance = client, perform, attendance
        self._finished = queue.SimpleQueue[Any]()
        self._workers: dict[str, int] = {}
        self._asked_s, self._leaving = float("-inf"), set[str]()

    @property
    def places(self) -> list[str | None]:
        """Return the places that are taken."""
        return [flying.place for flying in self.running.values()]

    def of(self, key: str) -> list[W]:
        """Return the work of a key, unless it has ended."""
        return [flying.attempt.work for flying in self.running.values() if str(flying.attempt.work.key) == key]

    def submit(self, attempts: Sequence[_Attempt[W]], place: str | None) -> None:
        keys = [_new_key(attempt.work.key) for attempt in attempts]
        calls = [packed(self._perform, attempt.work) for attempt in attempts]
        # at once: a message to the scheduler costs as much as what it says of a few
        futures = self._client.map(opener(), calls, key=keys, pure=False, workers=place)
        for key, future, attempt in zip(keys, futures, attempts, strict=True):
            self.running[key] = _Flying(future, attempt, place)
            future.add_done_callback(self._finished.put)

    def look(self) -> dict[str, int]:
        """Return the threads of each worker, at most a second old. Raises TryAgain."""
        if self._client.status != "running":
            raise _scheduler_gone(self._client.status)
        now = time.monotonic()
        if now - self._asked_s < TICK_S:
            return self._workers
        with _told_of_loss():
            here = self._client.nthreads()
            self._leaving &= set(here)
            self._workers = {address: threads for address, threads in here.items() if address not in self._leaving}
            self._attendance.look(self._client, self._workers)
        self._asked_s = now
        return self._workers

    def landed(self) -> list[tuple[_Attempt[W], R | Exception]]:
        """Return attempts that have ended, with their results; none after a tick. Raises TryAgain."""
        workers = self.look()
        if lost := [key for key, (_, _, place) in self.running.items() if place is not None and place not in workers]:
            return [self._lost(key) for key in lost]
        flown = [(future, self.running.pop(future.key)) for future in self._ended() if future.key in self.running]
        with _told_of_loss():
            results: list[R | Exception] = _results(self._client, [future for future, _ in flown])
        for (_, flying), result in zip(flown, results, strict=True):
            if isinstance(result, WorkerDied | Left):
                self._asked_s = float("-inf")  # whoever is submitted next must not go to it
            if isinstance(result, Left) and flying.place is not None:
                self._leaving.add(flying.place)
        return [(flying.attempt, result) for (_, flying), result in zip(flown, results, strict=True)]

    def _ended(self) -> list[Future[Any]]:
        """Return all futures that have ended, those given up before among them; none after a tick."""
        try:
            ended = [self._finished.get(timeout=TICK_S)]
        except queue.Empty:
            return []
        while not self._finished.empty():  # nobody else takes from it
            ended.append(self._finished.get())
        return ended

    def cancel(self) -> None:
        """Give up what is in flight."""
        if self.running and self._client.status == "running":
            with contextlib.suppress(OSError, CancelledError):  # the scheduler may go at this very moment
                self._client.cancel([flying.future for flying in self.running.values()], force=True)

    def _lost(self, key: str) -> tuple[_Attempt[W], WorkerDied]:
        """Give up work whose own worker is gone: Dask would wait for that one to come back."""
        flying = self.running.pop(key)
        with _told_of_loss():
            self._client.cancel([flying.future], force=True)
        return flying.attempt, _worker_died()


def _new_key(key: object) -> str:
    """Return a key of Dask's for an attempt: it would answer an old one with the old error.

    All are of one sort to Dask, which goes by what is before the first number: a scheduler keeps figures of each sort
    for good, 10 kB of each shard (docs/scale.md).
    """
    return f"{PREFIX}-{time.time_ns():x}-{key}"


def _results(client: Client, futures: Sequence[Future[Any]]) -> list[Any]:
    """Return what finished futures hold, or their exceptions: with one request, where none of them failed."""
    if len(futures) > 1 and all(future.status == "finished" for future in futures):
        gather = partial(client.gather, list(futures), asynchronous=True)
        try:
            return list(client.sync(gather, callback_timeout=RESULT_S))
        except Interrupted:  # a signal
            raise
        except Exception:  # noqa: S110 - one was lost with its worker since: whose it is, each is asked below
            pass
    return [_result(future) for future in futures]


def _result(future: Future[Any]) -> Any:
    """Return what a finished future holds, or its exception. Raises BadRequest: its worker has not our rooms."""
    from distributed import KilledWorker

    if future.status == "cancelled":
        raise CancelledError("it dropped some work")
    if future.status == "error":
        error = future.exception(timeout=RESULT_S)
        if (refusal := refused_by(error)) is not None:
            raise refusal
        if not isinstance(error, KilledWorker):
            return error if isinstance(error, Exception) else RuntimeError(repr(error))
    else:
        # A result is lost with the worker that holds it, and then Dask runs the work again, perhaps beside a killer.
        with contextlib.suppress(KilledWorker):
            return future.result(timeout=RESULT_S)
    return _worker_died()


def _worker_died() -> WorkerDied:
    return WorkerDied("its worker died each time; look at the worker's log, and at its memory")


@contextlib.contextmanager
def _told_of_loss() -> Iterator[None]:
    """Raise TryAgain for errors of Dask's own connections; those of the work are results."""
    try:
        yield
    except (OSError, CancelledError) as error:
        raise _scheduler_gone(str(error) or type(error).__name__) from None


def _scheduler_gone(found: str) -> TryAgain:
    return TryAgain("the Dask scheduler is gone", found=found, do="run the same command again; it resumes")
