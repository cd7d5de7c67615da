"""One holder at a time, whoever dies, sleeps or has a clock that is off; and nothing is left of a lease that ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import pytest

from storage.cache import lease
from storage.cache.lease import Holder, hold
from storage.errors import StorageFailure, TryAgain
from storage.format.objects import LocalObjects, Objects, open_objects
from storage.format.stages import LEASE, list_datasets

QUICK_S = 0.05


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", QUICK_S)


@pytest.fixture(params=["local", "bucket", pytest.param("container", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return open_objects(str(tmp_path / "root") if request.param == "local" else request.getfixturevalue(request.param))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process know nothing of others' numbers, as on another host."""
    monkeypatch.setattr(lease, "place", lambda: None)


def holding(objects: Objects, part: tuple[int, int] = (0, 1), *, wait: bool = False, notes: list[str] | None = None):
    return hold(objects, part, wait=wait, note=([] if notes is None else notes).append, do="cache build JOB --wait")


def leases(objects: Objects) -> list[str]:
    return [info.path for info in objects.list(LEASE).objects]


def left_behind(objects: Objects, number: int = 3, **fields: object) -> Holder:
    """Write the lease of a holder that died."""
    holder = Holder.here(QUICK_S).model_copy(update={"host": "gone", "pid": 77, **fields})
    objects.put(f"{LEASE}/0-of-1-{number:08d}.json", holder.model_dump_json().encode())
    return holder


def test_a_second_is_refused_and_told_who_holds_it_and_nothing_is_left(store: Objects) -> None:
    with holding(store):
        with pytest.raises(TryAgain) as refused, holding(store):
            pass
        said = json.loads(store.get(leases(store)[-1]))
        assert refused.value.exit_code == 75
        assert refused.value.found == f"process {os.getpid()} on {said['host']}, since {said['since']}"
        assert list_datasets(store) == []  # a lease is no dataset that has lost its promise
    assert leases(store) == []
    with holding(store):
        pass


def test_a_lease_is_renewed_and_keeps_two_objects_at_most(store: Objects) -> None:
    with holding(store):
        seen = [leases(store) for _ in range(40) if time.sleep(QUICK_S / 4) is None]
    assert max(map(len, seen)) <= 2
    assert int(seen[-1][-1][-13:-5]) >= 3
    assert leases(store) == []


def test_parts_that_share_no_shard_are_built_at_once_and_others_are_not(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    with holding(objects, (0, 2)), holding(objects, (1, 4)):
        for other in ((0, 1), (0, 2), (2, 4), (0, 3)):
            with pytest.raises(TryAgain, match="is being built"), holding(objects, other):
                pass
        assert {path[len(LEASE) + 1 :][:6] for path in leases(objects)} == {"0-of-2", "1-of-4"}


def test_a_dead_process_of_this_machine_is_known_to_be_dead_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 600)
    objects, notes, began_s = LocalObjects(tmp_path), list[str](), time.monotonic()
    left_behind(objects, pid=os.getpid(), born=1, renew_s=600)  # whose number this process has by now
    with holding(objects, notes=notes):
        assert [name[-13:] for name in leases(objects)] == ["00000004.json"]
    assert time.monotonic() - began_s < 60
    assert notes[0].startswith(f"note: took over from process {os.getpid()} on gone, since ")
    assert leases(objects) == []


def slowly(results: Iterator[int], until_s: float) -> None:
    while time.monotonic() < until_s:
        next(results)
        time.sleep(QUICK_S)


@pytest.mark.parametrize("off_s", [0, -10 * 86400, 10 * 86400], ids=["right", "behind", "ahead"])
@pytest.mark.usefixtures("elsewhere")
def test_a_holder_elsewhere_is_aged_by_the_watchers_own_clock(tmp_path: Path, off_s: int) -> None:
    objects, notes = LocalObjects(tmp_path), list[str]()
    left_behind(objects, since="2050-01-01T00:00:00+00:00" if off_s > 0 else "1970-01-01T00:00:00+00:00")
    (path,) = leases(objects)
    os.utime(tmp_path / path, (time.time() + off_s,) * 2)
    began_s = time.monotonic()
    with holding(objects, notes=notes):
        waited_s = time.monotonic() - began_s
    assert 6 * QUICK_S <= waited_s < 60
    assert [note.split(":")[0] for note in notes] == ["waiting for a sign of life, for 0.3 s at most", "note"]


@pytest.mark.usefixtures("elsewhere")
def test_a_holder_elsewhere_that_renews_is_never_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.3)  # on a busy machine a thread may sleep for a second
    objects = LocalObjects(tmp_path)
    with holding(objects) as held:
        began_s = time.monotonic()
        with pytest.raises(TryAgain), holding(objects):
            pass
        assert time.monotonic() - began_s < 60  # as soon as its number has moved
        held.check()


def test_what_several_dead_ones_have_left_is_taken_over_too(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    for number in (3, 4):  # the second was killed before it had cleared away what the first had left
        left_behind(objects, number, token=str(number), born=1)
    with holding(objects):
        assert [path[-13:-5] for path in leases(objects)] == ["00000005"]
    assert leases(objects) == []


def test_who_finds_another_under_the_number_of_a_dead_one_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, create = LocalObjects(tmp_path), LocalObjects.create
    left_behind(objects, 0, born=1)

    def late(self: LocalObjects, path: str, data: bytes) -> bool:
        if path.endswith("00000001.json"):  # it was looked at; now it is gone, and a living one has begun in its place
            left_behind(objects, 0, pid=os.getppid(), born=lease.born(os.getppid()), token="living")
        return create(self, path, data)

    monkeypatch.setattr(LocalObjects, "create", late)
    with pytest.raises(TryAgain, match="is being built"), holding(objects):
        pass
    assert json.loads(objects.get(leases(objects)[0]))["token"] == "living"
    assert len(leases(objects)) == 1


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("data", [b"", b"[]", b"\xff" * 5000, b'{"host": 1}', b'{"renew_s": 1e9}'])
def test_a_lease_that_is_damaged_or_lies_is_taken_over_like_a_dead_one(tmp_path: Path, data: bytes) -> None:
    objects = LocalObjects(tmp_path)
    objects.put(f"{LEASE}/0-of-1-00000000.json", data)
    objects.put(f"{LEASE}/7-of-1-00000000.json", b"")  # no part: nobody's business
    with holding(objects):
        pass
    assert leases(objects) == [f"{LEASE}/7-of-1-00000000.json"]


def test_of_many_that_wait_one_holds_it_at_a_time_and_each_in_its_turn(
    store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 3.0)  # a busy machine sleeps for seconds
    inside, met, took = threading.Semaphore(1), list[int](), list[int]()

    def take(number: int) -> None:
        with holding(store, (number % 2, 2) if number > 3 else (0, 1), wait=True):
            if number <= 3:
                met.append(number) if not inside.acquire(blocking=False) else None
                time.sleep(QUICK_S / 2)
                inside.release()
            took.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(timeout=120)
    assert (sorted(took), met, leases(store)) == ([0, 1, 2, 3, 4, 5], [], [])


def test_who_has_lost_the_lease_stops_before_its_next_shard(tmp_path: Path) -> None:
    objects, ended = LocalObjects(tmp_path), list[bool]()

    def work(todo: Iterable[int]) -> Generator[int]:
        try:
            yield from todo
        finally:
            ended.append(True)

    with holding(objects) as held, contextlib.closing(held.kept(work)(range(1000))) as results:
        assert next(results) == 0
        left_behind(objects, 99)  # of one that has taken over
        until_s = time.monotonic() + 60
        with pytest.raises(TryAgain, match="by another process by now") as lost:
            slowly(results, until_s)
    assert (ended, lost.value.exit_code) == ([True], 75)
    assert leases(objects) == [f"{LEASE}/0-of-1-00000099.json"]  # theirs


def test_who_waits_for_a_long_shard_hears_at_once_that_the_lease_is_lost(tmp_path: Path) -> None:
    objects, ended = LocalObjects(tmp_path), list[bool]()

    def work(todo: Iterable[int]) -> Generator[int]:
        try:
            for each in todo:
                threading.Event().wait(60)
                yield each
        finally:
            ended.append(True)

    before = signal.getsignal(signal.SIGURG)
    with holding(objects) as held:
        left_behind(objects, 99)  # of one that has taken over
        began = time.monotonic()
        with pytest.raises(TryAgain, match="by another process by now"):
            next(held.kept(work)(range(3)))
        assert (ended, time.monotonic() - began < 30) == ([True], True)
    assert signal.getsignal(signal.SIGURG) is before


def test_a_disk_that_fails_for_a_while_costs_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, failed = LocalObjects(tmp_path), list[str]()
    create = objects.create

    def failing(path: str, data: bytes) -> bool:
        if len(failed) < 2 and path[-13:-5] == "00000002":
            failed.append(path)
            raise StorageFailure("cannot write", found="no space left on device")
        return create(path, data)

    monkeypatch.setattr(objects, "create", failing)
    with holding(objects) as held:
        until_s = time.monotonic() + 60
        while not any(path[-13:-5] >= "00000004" for path in leases(objects)) and time.monotonic() < until_s:
            time.sleep(QUICK_S)
        held.check()
    assert (len(failed), leases(objects)) == (2, [])


def test_a_lease_that_could_not_be_given_back_stands_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str) -> None:
        raise StorageFailure("cannot delete", found="read-only file system")

    objects = LocalObjects(tmp_path)
    with monkeypatch.context() as patch, holding(objects):
        patch.setattr(objects, "delete", refused)
    assert leases(objects) != []
    with holding(objects):  # of this very process, which is alive
        pass
    assert leases(objects) == []


SLEEPER = """
import sys, time
from storage.cache import lease
from storage.errors import TryAgain
from storage.format.objects import LocalObjects
lease.RENEW_S = 0.05
try:
    with lease.hold(LocalObjects(sys.argv[1]), (0, 1), wait=False, note=print, do="") as held:
        print("held", flush=True)
        while True:
            held.check()
            time.sleep(0.01)
except TryAgain as error:
    print(error)
    sys.exit(error.exit_code)
"""


@contextlib.contextmanager
def sleeper(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SLEEPER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_stopped_holder_is_taken_over_and_stops_for_good_when_it_wakes_and_a_killed_one_is_at_once(
    tmp_path: Path,
) -> None:
    objects, notes = LocalObjects(tmp_path), list[str]()
    with sleeper(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(TryAgain, match="is being built"), holding(objects):  # the process is there
            pass
        with holding(objects, wait=True, notes=notes):
            process.send_signal(signal.SIGCONT)
            out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"found     process {os.getpid()} on " in out
    assert [note.split(":")[0].split(" process")[0] for note in notes] == ["waiting for its end", "note"]
    with sleeper(tmp_path) as process:
        process.kill()
        process.wait()
        with holding(objects):
            pass
    assert leases(objects) == []
