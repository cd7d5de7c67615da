"""Who builds: a lease in the cache, so that a second start waits or ends, and nothing is computed twice.

    _lease/0-of-1-00000007.json    part 0 of 1 is being built, and its lease was renewed seven times

It is advice and saves work; what is stored never depends on it (invariant 3). A holder creates the next number every
`renew_s` and deletes those before. No clock is compared with another's: whoever watches sees whether the number moves
while so much time passes by its own. A process that is gone from this very machine is known to be dead at once.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import UTC, datetime
from math import gcd
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.cache.processes import born, place
from storage.errors import CorruptObject, StillroomError, TryAgain, duration
from storage.format.objects import Objects
from storage.format.stages import LEASE

RENEW_S = 20.0  # less than any scheduler waits, and a few requests a minute
MISSED = 6  # renewals: then a lease is of nobody; more than the minute for which NFS may show an old listing
LOOKS = 3  # for a lease that is renewed between a list and a read
LONGEST_RENEW_S = 600.0  # whatever a lease says of itself
MOST_BYTES = 4096
WAKE = signal.SIGURG  # which nobody sends, and which does nothing where nobody listens
_NAME = re.compile(rf"{LEASE}/(\d{{1,9}})-of-(\d{{1,9}})-(\d{{8,15}})\.json")

Part = tuple[int, int]
_held: set[str] = set()  # tokens of this process's leases, those that it asks for among them
Result = TypeVar("Result")
Work = TypeVar("Work")


class Holder(BaseModel):
    """Who holds a lease, as its objects say.

    Attributes:
        host, pid, since: for people; `since` by the holder's own clock.
        token: of this lease and no other.
        renew_s: seconds from one number to the next.
        place: where `pid` means something: machine, boot and namespace; None where that is not known.
        born: when the process began, in ticks of its machine: another may have its number by now.
    """

    model_config = ConfigDict(frozen=True)

    host: Annotated[str, Field(max_length=255)]
    pid: int
    since: Annotated[str, Field(max_length=40)]
    token: Annotated[str, Field(max_length=64)]
    renew_s: Annotated[float, Field(gt=0, le=LONGEST_RENEW_S)]
    place: Annotated[str | None, Field(max_length=512)] = None
    born: int | None = None

    @classmethod
    def here(cls, renew_s: float) -> Holder:
        """Return this process."""
        return cls(
            host=socket.gethostname()[:255],
            pid=os.getpid(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            token=secrets.token_hex(8),
            renew_s=renew_s,
            place=place(),
            born=born(os.getpid()),
        )

    @property
    def told(self) -> str:
        """Return who it is, for messages."""
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_alive(self) -> bool | None:
        """Return whether the process is there; None where that cannot be known from here."""
        if self.place is None or self.born is None or self.place != place():
            return None
        if self.pid == os.getpid() and self.token not in _held:
            return False  # given back, and a store that did not answer kept it
        return born(self.pid) == self.born


class _Seen(NamedTuple):
    """What a watcher has seen of a lease.

    Attributes:
        number, holder: as it stands.
        since_s: when that number was first seen, by the watcher's clock.
        lives: whether it is known to.
        tokens: of all its objects that were there then, by number; "" of what cannot be read.
    """

    number: int
    holder: Holder | None
    since_s: float
    lives: bool
    tokens: dict[int, str]

    @property
    def told(self) -> str:
        return "a lease that cannot be read" if self.holder is None else self.holder.told

    @property
    def patience_s(self) -> float:
        return MISSED * (RENEW_S if self.holder is None else self.holder.renew_s)

    def is_dead(self, now_s: float) -> bool:
        if self.holder is not None and self.holder.is_alive() is False:
            return True
        return now_s - self.since_s > self.patience_s


class Lease:
    """A lease that is held, and renewed until it is ended.

    Args:
        objects: the cache's.
        part: of a build.
        number: of the object that was created.
        holder: this process.

    Attributes:
        waited: whether another had it while this process asked for it.
    """

    def __init__(self, objects: Objects, part: Part, number: int, holder: Holder, *, waited: bool):
        self.waited = waited
        self._objects, self._part, self._number, self._holder = objects, part, number, holder
        self._ended = threading.Event()
        self._lost: str | None = None
        self._wakes = False
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise TryAgain if another has taken the lease over: this process seemed dead."""
        if self._lost is not None:
            missed = duration(MISSED * self._holder.renew_s)
            raise TryAgain(
                f"{self._objects.url} is built by another process by now",
                found=f"{self._lost}; this one gave no sign of life for {missed}, as if stopped or cut off",
                do="run the same command again; what is committed stays",
            )

    def kept(
        self, runner: Callable[[Iterable[Work]], Generator[Result]]
    ) -> Callable[[Iterable[Work]], Generator[Result]]:
        """Return a runner whose work ends when the lease is lost: in the main thread while it waits, too."""

        def run(todo: Iterable[Work]) -> Generator[Result]:
            with self._waking(), contextlib.closing(runner(todo)) as results:
                for result in results:
                    self.check()
                    yield result

        return run

    @contextlib.contextmanager
    def _waking(self) -> Iterator[None]:
        """Have `check` called in the main thread when the lease is lost, whatever it waits for."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(WAKE, lambda number, frame: self.check())
        self._wakes = True
        try:
            self.check()  # it may be lost already
            yield
        finally:
            self._wakes = False
            signal.signal(WAKE, signal.SIG_DFL if before is None else before)  # None: it was not of Python

    def end(self) -> None:
        """Give the lease back."""
        self._ended.set()
        self._thread.join(timeout=self._holder.renew_s)
        with contextlib.suppress(StillroomError):  # then it is of nobody in a while
            if self._lost is None or _is_ours(self._objects, self._part, self._number, self._holder):
                self._objects.delete(self._path(self._number))  # first: a store may write and not list
                _delete(self._objects, self._part, self._number)

    def _keep(self) -> None:
        while self._lost is None and not self._ended.wait(self._holder.renew_s):
            with contextlib.suppress(StillroomError):  # the next time; a store that is gone for all stops the build
                self._renew()

    def _renew(self) -> None:
        numbers = _numbers(self._objects).get(self._part, {})
        newest = max(numbers, default=-1)
        if newest > self._number and _is_ours(self._objects, self._part, newest, self._holder):
            self._number = newest  # created after all, by a request that was never answered
        data = self._holder.model_dump_json().encode()
        if self._number in numbers and self._number == newest and self._objects.create(self._path(newest + 1), data):
            self._number = newest + 1
            _delete(self._objects, self._part, newest)
            return
        found = _read(self._objects, self._path(max(_numbers(self._objects).get(self._part, {}), default=newest)))
        self._lost = "a lease that is gone" if found is None else found.told
        if self._wakes:
            signal.pthread_kill(threading.main_thread().ident or 0, WAKE)

    def _path(self, number: int) -> str:
        return _path(self._part, number)


class Builder(NamedTuple):
    """Who builds a part of a cache, or did so when it died, as far as can be told without waiting.

    Attributes:
        part: of the build.
        holder: None: its lease cannot be read.
        renewed_s: when it was renewed last, by the clock of the disk or store.
    """

    part: Part
    holder: Holder | None
    renewed_s: float

    @property
    def told(self) -> str:
        if self.holder is None:
            return f"a lease that cannot be read, written at {self._renewed}, stands in the way{_of_part(self.part)}"
        who = f"{self.holder.told}{_of_part(self.part)}"
        if (alive := self.holder.is_alive()) is False:
            return f"nobody builds it: {who} is gone; the next build takes its lease over"
        doubt = "" if alive else f", unless it is gone: its lease was renewed at {self._renewed}"
        return f"being built by {who}{doubt}"

    def as_values(self) -> dict[str, Any]:
        """Return it for JSON; `alive` is null where that cannot be known from here."""
        of = self.holder
        who = {"host": of and of.host, "pid": of and of.pid, "since": of and of.since, "alive": of and of.is_alive()}
        return {"part": f"{self.part[0]}/{self.part[1]}", **who, "renewed": self._renewed}

    @property
    def _renewed(self) -> str:
        return datetime.fromtimestamp(self.renewed_s, UTC).isoformat(timespec="seconds")


def read_builders(objects: Objects) -> list[Builder]:
    """Return who builds a cache, a part each; writes nothing, and waits for nobody."""
    found: list[Builder] = []
    for _ in range(LOOKS):
        there = sorted((part, max(times.items())) for part, times in _numbers(objects).items())
        found = [Builder(part, _read(objects, _path(part, number)), at_s) for part, (number, at_s) in there]
        if all(each.holder for each in found):
            break
    return found


@contextlib.contextmanager
def hold(objects: Objects, part: Part, *, wait: bool, note: Callable[[str], None], do: str) -> Iterator[Lease]:
    """Hold the lease of a part of a build.

    Args:
        objects: the cache's.
        part: (i, n), number i of n; (0, 1) is all of it. Parts that share a shard exclude each other.
        wait: for another holder to end; else it is refused as soon as it is known to live.
        note: is told what is waited for, and which lease is taken over.
        do: what to do about a refusal.

    Raises:
        TryAgain: another process holds it.
    """
    holder = Holder.here(RENEW_S)
    _held.add(holder.token)  # before anybody can see it
    try:
        lease = _take(objects, part, holder, wait=wait, note=note, do=do)
        try:
            yield lease
        finally:
            lease.end()
    finally:
        _held.discard(holder.token)


def _take(objects: Objects, part: Part, holder: Holder, *, wait: bool, note: Callable[[str], None], do: str) -> Lease:
    seen, told = dict[Part, _Seen](), set[str]()
    while True:
        seen = _look(objects, part, seen)
        now_s = time.monotonic()
        living = {each: of for each, of in seen.items() if not of.is_dead(now_s)}
        if not living:
            if _create(objects, part, seen, holder):
                for of in seen.values():
                    note(f"note: took over from {of.told}, which is gone")
                number = seen[part].number + 1 if part in seen else 0
                return Lease(objects, part, number, holder, waited=bool(told))
            seen = {}  # all of it anew: what was dead may be another's by now, under the same number
            time.sleep(random.uniform(0, RENEW_S / 20))  # noqa: S311 - of two that meet, one is to be first
            continue
        for other, of in living.items():
            if of.lives and not wait:
                raise TryAgain(f"{objects.url} is being built", found=of.told + _of_part(other), do=do)
            if of.told not in told:
                told.add(of.told)
                until = "its end" if of.lives else f"a sign of life, for {duration(of.patience_s)} at most"
                note(f"waiting for {until}: {of.told}{_of_part(other)} builds this cache")
        time.sleep(min(of.patience_s for of in living.values()) / MISSED / 4)


def _look(objects: Objects, part: Part, before: dict[Part, _Seen]) -> dict[Part, _Seen]:
    """Return the leases that stand in the way of a part, with what was seen of them before."""
    found = {}
    for other, numbers in _numbers(objects).items():
        if not _overlap(part, other):
            continue
        number, known = max(numbers), before.get(other)
        if known is None or known.number != number:
            holders = {each: _read(objects, _path(other, each)) for each in numbers}
            holder, tokens = holders[number], {each: _token(found) for each, found in holders.items()}
            lives = known is not None or (holder is not None and holder.is_alive() is True)
            known = _Seen(number, holder, time.monotonic(), lives, tokens)
        found[other] = known
    return found


def _create(objects: Objects, part: Part, dead: dict[Part, _Seen], holder: Holder) -> bool:
    """Create a lease where only dead ones are; return whether it is ours, for others may do the same."""
    number = dead[part].number + 1 if part in dead else 0
    if not objects.create(_path(part, number), holder.model_dump_json().encode()):
        return False
    for other, numbers in _numbers(objects).items():
        known = {} if other not in dead else dead[other].tokens
        for each in numbers if _overlap(part, other) else ():
            path = _path(other, each)
            if (other, each) == (part, number) or known.get(each) == (token := _token(_read(objects, path))):
                continue
            if each not in known or token:  # somebody began at the same moment, perhaps under a number that was free
                objects.delete(_path(part, number))
                return False
    for other, of in dead.items():
        _delete(objects, other, of.number)
    return True


def _delete(objects: Objects, part: Part, last: int) -> None:
    """Delete the objects of a lease up to a number."""
    for number in _numbers(objects).get(part, {}):
        if number <= last:
            objects.delete(_path(part, number))


def _numbers(objects: Objects) -> dict[Part, dict[int, float]]:
    """Return the numbers that are there of each part, with the time of each by the clock that dates them."""
    found: dict[Part, dict[int, float]] = {}
    for info in objects.list(LEASE).objects:
        if (named := _NAME.fullmatch(info.path)) is not None and int(named[1]) < int(named[2]):
            found.setdefault((int(named[1]), int(named[2])), {})[int(named[3])] = info.modified_s
    return found


def _read(objects: Objects, path: str) -> Holder | None:
    """Return what a lease says of its holder; None: it is gone or damaged, and only its number tells."""
    try:
        return Holder.model_validate_json(objects.get(path, MOST_BYTES))
    except (CorruptObject, ValidationError):
        return None


def _token(holder: Holder | None) -> str:
    return "" if holder is None else holder.token


def _is_ours(objects: Objects, part: Part, number: int, holder: Holder) -> bool:
    return _token(_read(objects, _path(part, number))) == holder.token


def _path(part: Part, number: int) -> str:
    return f"{LEASE}/{part[0]}-of-{part[1]}-{number:08d}.json"


def _of_part(part: Part) -> str:
    return "" if part == (0, 1) else f" (part {part[0]}/{part[1]})"


def _overlap(one: Part, other: Part) -> bool:
    """Return whether two parts share a shard, were there enough of them.

    >>> [_overlap((0, 1), (3, 4)), _overlap((0, 2), (1, 2)), _overlap((1, 2), (1, 4)), _overlap((0, 2), (1, 3))]
    [True, False, True, True]
    """
    return (one[0] - other[0]) % gcd(one[1], other[1]) == 0
