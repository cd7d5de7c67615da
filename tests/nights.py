"""Many nights of a dataset that grows, on a disk on which builds are killed, fail, and are shown half of what is there.

All in this process: a kill is an exception that nothing handles, after which the disk does nothing any more for whoever
was killed. Days pass by a clock of the simulation, which dates every object.
"""

from __future__ import annotations

import os
import random
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache, cache, lease
from storage.cache.garbage import delete_garbage, find_garbage
from storage.cache.verify import verify
from storage.errors import CorruptObject, StorageFailure, TryAgain
from storage.format.objects import TEMPORARY_PREFIX, Listing, LocalObjects, Span
from storage.format.shards import read_commits, stage_folder
from storage.format.stages import LEASE, LEDGER
from teacher_cache.building.alone import alone
from teacher_cache.building.build import run_build
from teacher_cache.building.runners import run_inline
from teacher_cache.building.survey import prepare_build
from tests.teacher_cache.toys import Silent, teacher_section, write_job, write_teacher

DAY_S = 86400.0
FIRST_S = 1_700_000_000.0
ROWS_PER_SHARD = 4
DATASET = f"""[[dataset]]
name = "digits"
kind = "image_folder"
path = "images"
channels = 1
rows_per_shard = {ROWS_PER_SHARD}
"""


class Killed(BaseException):
    """The end of a process, which nothing in it may handle."""


@dataclass
class Weather:
    """What befalls one command.

    Attributes:
        kill_at, how: the number of the write at which it dies, "before", "half" way or "after".
        fail_at: writes that fail.
        hidden: share of objects that each listing leaves out.
        meet_at: the writes before which `meets` happens, another command beside this one.
    """

    kill_at: int | None = None
    how: str = "before"
    fail_at: frozenset[int] = frozenset()
    hidden: float = 0.0
    meet_at: range = range(0)
    meets: Callable[[], object] | None = None

    @property
    def is_fine(self) -> bool:
        return self.kill_at is None and not self.fail_at and not self.hidden


@dataclass
class Sky:
    """The clock of all, and the weather of the command that runs."""

    rng: random.Random
    night: int = 0
    weather: Weather = field(default_factory=Weather)
    writes: int = 0
    dead: bool = False
    command: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, weather: Weather) -> None:
        self.weather, self.writes, self.dead = weather, 0, False
        self.command += 1

    @property
    def now_s(self) -> float:
        return FIRST_S + self.night * DAY_S + self.writes


class Disk(LocalObjects):
    """A folder under that sky, as one command sees it."""

    def __init__(self, root: str | Path, sky: Sky):
        super().__init__(root)
        self._sky, self._command = sky, sky.command

    def get(self, path: str, most_bytes: int | None = None) -> bytes:
        self._alive()
        return super().get(path, most_bytes)

    def get_ranges(self, path: str, spans: Sequence[Span]) -> list[bytes]:
        self._alive()
        return super().get_ranges(path, spans)

    def put(self, path: str, data: bytes) -> None:
        self._write(path, lambda: super(Disk, self).put(path, data))

    def create(self, path: str, data: bytes) -> bool:
        return self._write(path, lambda: super(Disk, self).create(path, data))

    def delete(self, path: str) -> None:
        self._write(path, lambda: super(Disk, self).delete(path))

    def list(self, folder: str = "") -> Listing:
        self._alive()
        found = super().list(folder)
        return Listing([info for info in found.objects if self._shown()], found.folders)

    def versions(self, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        self._alive()
        yield from (each for each in super().versions(folder, names) if self._shown())

    def now_s(self) -> float:
        return self._sky.now_s

    def _shown(self) -> bool:
        return not self._sky.weather.hidden or self._sky.rng.random() >= self._sky.weather.hidden

    def _alive(self) -> None:
        if self._sky.dead or self._command != self._sky.command:  # or a thread of one that has ended
            # a thread that dies by an exception would be a fault; this one ends quietly
            raise StorageFailure("dead") if threading.current_thread().name == "lease" else Killed

    def _write(self, path: str, act: Callable[[], object]) -> object:
        sky, meets = self._sky, None
        with sky.lock:
            self._alive()
            sky.writes += 1
            weather, number = sky.weather, sky.writes
            if number == weather.kill_at:
                sky.dead = True
            if number in weather.meet_at:
                meets, weather.meets = weather.meets, None  # not while it lasts: its own writes are none of these
        if meets is not None:
            meets()
            weather.meets = meets
        if number == weather.kill_at and weather.how != "after":
            if weather.how == "half":
                self._leave_half(path)
            self._alive()
        if number in weather.fail_at:
            raise StorageFailure(f"cannot write {path}", found="No space left on device")
        done = act()
        self._date(self.root / path)
        self._alive()
        return done

    def _leave_half(self, path: str) -> None:
        half = (self.root / path).parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(b"half")
        self._date(half)

    def _date(self, path: Path) -> None:
        if path.exists():
            os.utime(path, (self._sky.now_s,) * 2)


@dataclass
class Nights:
    """What has come of all nights.

    Attributes:
        happened: how many commands ended in which way.
        most: of each kind of object the most that a night has left, beyond one for each promise, plan and shard.
        shards: committed in the end.
        deleted: by gc.
    """

    happened: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    shards: int = 0
    deleted: int = 0


class Kitchen:
    """A dataset that grows, the job over it, and what must be true of its cache after each night.

    Args:
        folder: an empty one.
        seed: of all that happens.
        patch: undone by the caller.
    """

    def __init__(self, folder: Path, seed: int, patch: pytest.MonkeyPatch):
        self.rng, self.folder, self.nights = random.Random(seed), folder, Nights()
        self.sky, self._seed = Sky(random.Random(seed)), seed
        self._images, self._known = 0, dict[str, str]()
        patch.setattr(cache, "open_objects", lambda url: Disk(url, self.sky))
        # each command is another process, and some are on another machine, which died with them
        patch.setattr(lease, "born", lambda pid: hash((self.sky.night, id(self.sky.weather))))
        patch.setattr(lease, "place", lambda: f"host {self.sky.night % 5 // 4}")
        patch.setattr(lease, "RENEW_S", 0.2)
        patch.setattr(lease, "MISSED", 0.05)
        write_teacher(folder, classes=2)
        self.grow(4)
        self.job = write_job(folder, DATASET, teacher_section(classes=2))

    def grow(self, count: int) -> None:
        """Add images; each is another."""
        for number in range(self._images, self._images + count):
            path = self.folder / "images" / ("odd" if number % 2 else "even") / f"{number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(path)
        self._images += count

    def pass_night(self) -> None:
        """Let a night pass: rows come, commands are started, some die, and what is left is looked at."""
        self.sky.night += 1
        # of this night alone, whatever came of those before: threads do not take the same turns twice
        self.rng = random.Random(f"{self._seed}/{self.sky.night}")
        self.grow(self.rng.choice((0, 1, 3, 4, 4, 5)))
        weathers = [self._weather() for _ in range(self.rng.randint(1, 2))]
        collecting = self._weather(collecting=True)
        any(self.build(weather) for weather in weathers)  # the second where the first has failed
        if self.sky.night % 3 == 0:
            self.collect(collecting)
        self.look()

    def build(self, weather: Weather) -> bool:
        """Run a build in some weather; return whether all is there, as far as it says."""
        if weather.meet_at:
            weather.meets = self.rng.choice((self._collect_now, self._start_again))
        return self._run("build", weather, self._build)

    def collect(self, weather: Weather) -> None:
        """Run gc in some weather."""
        self._run("gc", weather, self._collect_now)

    def look(self) -> None:
        """Check that nothing is lost, and count what lies about."""
        self.sky.begin(Weather())
        self._known = self._grown()
        found = Counter(self._kind(path) for path in self._paths())
        for kind in ("attempt", "temporary", "ledger", "lease"):
            self.nights.most[kind] = max(self.nights.most[kind], found[kind])
        self.nights.shards = len(self._known)

    def end(self) -> None:
        """Build in good weather, let garbage grow old, collect it, and check every row and object."""
        assert self.build(Weather())
        self.sky.night += 2
        self.collect(Weather())
        self.look()
        assert verify(Cache.open(self._url)).bad == ()
        left = Counter(self._kind(path) for path in self._paths())
        assert (left["attempt"], left["temporary"], left["lease"], left["other"]) == (0, 0, 0, 4), left
        found = Cache.open(self._url).samples().of("digits", ["toy"])
        assert sorted(found["sample_id"]) == sorted(
            f"{path.parent.name}/{path.name}" for path in (self.folder / "images").rglob("*.png")
        )
        assert found.null_count().sum_horizontal().sum() == 0
        alone_job = self.folder / "alone.toml"
        alone_job.write_text(self.job.read_text().replace('cache = "cache"', 'cache = "alone"'))
        self._build(alone_job)
        whole = Cache.open(str(self.folder / "alone")).samples().of("digits", ["toy"])
        both = found.join(whole, on="sample_id", suffix="_alone")
        assert both.height == self._images
        assert both["payload_digest"].equals(both["payload_digest_alone"])
        difference = both["toy_entropy"] - both["toy_entropy_alone"]
        assert float(difference.abs().max()) < 1e-4  # type: ignore[arg-type]

    @property
    def _url(self) -> str:
        return str(self.folder / "cache")

    def _weather(self, *, collecting: bool = False) -> Weather:
        """Return the weather of a command: half of them are undisturbed."""
        rng, writes = self.rng, range(1, 5 if collecting else 24)
        match rng.randrange(10):
            case 0 | 1:
                return Weather(kill_at=rng.choice(writes), how=rng.choice(("before", "half", "after")))
            case 2:
                return Weather(fail_at=frozenset(rng.sample(writes, 2)))
            case 3:
                return Weather(hidden=0.05)
            case 4 | 5 | 6 if not collecting:
                first = rng.choice(writes)
                return Weather(meet_at=range(first, first + 8))
        return Weather()

    def _run(self, what: str, weather: Weather, act: Callable[[], bool]) -> bool:
        self.sky.begin(weather)
        why = ""
        try:
            whole = act()
        except Killed:
            end = "killed"
        except StorageFailure:
            end = "failed"
        except TryAgain as error:
            end, why = "refused", str(error)
        except CorruptObject:  # as a listing says that leaves out what is there
            end = "misled"
        else:
            self.nights.happened[f"{what} done"] += 1
            return whole
        self.nights.happened[f"{what} {end}"] += 1
        may_be = {"killed": weather.kill_at is not None, "failed": bool(weather.fail_at)}
        assert may_be.get(end, bool(weather.hidden)), f"{what} {end} in {weather} {why}"
        return False

    def _build(self, job: Path | None = None) -> bool:
        read = read_job(job or self.job, CacheJob)
        prepared, watcher = prepare_build(read.request(self.job)), Silent()
        with alone(prepared, watcher, wait=False) as (build, kept):
            return run_build(build, kept(run_inline), watcher).exit_code == 0

    def _collect_now(self) -> bool:
        opened = Cache.open(self._url)
        self.nights.deleted += len(delete_garbage(opened, find_garbage(opened).old))
        return True

    def _start_again(self) -> None:
        """Start a second build beside the one that runs, which is refused unless that one has no lease yet."""
        try:
            self._build()
        except TryAgain:
            self.nights.happened["second start refused"] += 1

    def _grown(self) -> dict[str, str]:
        """Return the attempt of every shard: none may be gone, or another, or without its group."""
        opened = Cache.open(self._url)
        now: dict[str, str] = {}
        for teacher in (None, "toy"):
            folder = stage_folder("digits", teacher)
            numbers = sorted(opened.objects.list(folder).objects)
            names = [info.path for info in numbers if info.path.endswith(".parquet")]
            for commit in read_commits(opened.objects, names):
                now[str(commit.key)] = commit.attempt
                assert (Path(self._url) / commit.group).exists(), commit.key
        lost = {key: attempt for key, attempt in self._known.items() if now.get(key) != attempt}
        assert not lost, lost
        return now

    def _paths(self) -> Iterator[str]:
        for path in Path(self._url).rglob("*"):
            if path.is_file():
                yield path.relative_to(self._url).as_posix()

    def _kind(self, path: str) -> str:
        """Return what an object is: of a shard, of a plan, or one of those that must not become many."""
        name = path.rsplit("/", 1)[-1]
        if name.startswith(TEMPORARY_PREFIX):
            return "temporary"
        top = path.split("/", 1)[0]
        if top in (LEASE, LEDGER):
            return {LEASE: "lease", LEDGER: "ledger"}[top]
        if name.endswith(".zarr.zip"):
            attempt = name.removesuffix(".zarr.zip").split("-")[1]
            return "group" if attempt in self._known.values() else "attempt"
        return "commit or plan" if name.endswith(".parquet") else "other"


def spend(folder: Path, nights: int, seed: int = 0) -> Nights:
    """Return what has come of so many nights, each looked at, and the last one in good weather."""
    with pytest.MonkeyPatch.context() as patch:
        kitchen = Kitchen(folder, seed, patch)
        kitchen.build(Weather())
        for _ in range(nights):
            kitchen.pass_night()
        kitchen.end()
        return kitchen.nights
