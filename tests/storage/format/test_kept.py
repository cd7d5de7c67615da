"""Shards of a store, kept on a disk of this machine: fetched once, below a bound, and never trusted."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.format.objects import KeptObjects, LocalObjects, Span
from storage.format.stores import kept as kept_module
from storage.format.stores.kept import DIGEST_BYTES, FOLDER, LEFT_OVER_S
from tests.counting import Counting

GROUPS = [f"toy/ingest/{number:05d}-0123abcd.zarr.zip" for number in range(20)]
SPANS = [Span(0, 40), Span(60, 100)]


def content(number: int) -> bytes:
    return bytes(number + 3 * at & 255 for at in range(100))


@pytest.fixture
def store(tmp_path: Path) -> Counting:
    """Return a store of 20 groups of 100 bytes and a commit, which counts what is asked of it."""
    objects = LocalObjects(tmp_path / "store")
    for number, group in enumerate(GROUPS):
        objects.put(group, content(number))
    objects.put("toy/ingest/00000.parquet", b"a commit")
    return Counting(objects)


Keeps = Callable[..., KeptObjects]


@pytest.fixture
def keeps(store: Counting, tmp_path: Path) -> Keeps:
    (tmp_path / "scratch").mkdir()

    def open_kept(most_bytes: int = 10**6, cache_id: str = "one", folder: str = "scratch") -> KeptObjects:
        return KeptObjects(store, cache_id, tmp_path / folder, most_bytes)

    return open_kept


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "scratch" / FOLDER).glob("*.kept"))


def held_bytes(tmp_path: Path) -> int:
    """Return the bytes of all that lies in the folder, but for the number of them."""
    below = tmp_path / "scratch" / FOLDER
    return sum(path.stat().st_size for path in below.iterdir() if path.name != "held")


def read(objects: KeptObjects, number: int) -> None:
    parts = [content(number)[span.start : span.stop] for span in SPANS]
    assert objects.get_ranges(GROUPS[number], SPANS) == parts


def test_a_shard_is_fetched_once_and_what_is_no_shard_each_time(store: Counting, keeps: Keeps) -> None:
    for objects in (keeps(), keeps()):  # a second command
        for _ in range(2):
            read(objects, 3)
            assert objects.get("toy/ingest/00000.parquet") == b"a commit"
        assert objects.notes() == []
    groups = [path for _, path in store.requests if path in GROUPS]
    assert (len(groups), len(store.requests)) == (2, 2 + 4)
    assert (objects.read_bytes, objects.fetched_bytes) == (160, 0)
    # one more span: it alone is fetched; of another cache at the same address, all
    assert objects.get_ranges(GROUPS[3], [Span(0, 40), Span(90, 120)]) == [content(3)[:40], content(3)[90:]]
    read(keeps(cache_id="another"), 3)
    assert len([path for _, path in store.requests if path in GROUPS]) == 2 + 1 + 2
    # a member of a group of format 2, which is an object of its own
    store.put("toy/ingest/00000-0123abcd.zarr/inputs/c/0", b"old")
    assert [keeps().get("toy/ingest/00000-0123abcd.zarr/inputs/c/0") for _ in range(2)] == [b"old"] * 2
    assert len([path for verb, path in store.requests if path.endswith("inputs/c/0") and verb == "get"]) == 1


@pytest.mark.parametrize("damage", ["first byte", "last byte", "cut", "another's", "empty", "a folder"])
def test_a_kept_shard_that_is_damaged_is_told_and_read_again(
    store: Counting, keeps: Keeps, tmp_path: Path, damage: str
) -> None:
    read(keeps(), 0)
    path, other = files(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    elif damage == "another's":
        path.write_bytes(other.read_bytes())
    else:
        at = {"first byte": 0, "last byte": -1, "cut": 0, "empty": 0}[damage]
        data[at] ^= 1
        whole = bytes(path.read_bytes())
        path.write_bytes({"cut": whole[:-1], "empty": b""}.get(damage, bytes(data)))
    objects = keeps()
    read(objects, 0)
    (note, *more) = objects.notes()
    assert path.name in note
    assert objects.fetched_bytes == 40
    if damage == "a folder":  # which is not ours to delete
        assert "nothing more is kept" in more[0]
    else:
        read(again := keeps(), 0)
        assert (more, again.notes(), again.fetched_bytes) == ([], [], 0)


def test_the_oldest_use_goes_first_and_the_folder_stays_below_its_bound(
    keeps: Keeps, tmp_path: Path, store: Counting
) -> None:
    one = 2 * (DIGEST_BYTES + 40)  # of a shard's two spans
    objects = keeps(10 * one)
    for number in range(10):
        read(objects, number)
        time.sleep(0.002)  # times of files are of a few milliseconds' ticks
    assert (held_bytes(tmp_path), len(files(tmp_path))) == (10 * one, 20)
    time.sleep(0.02)
    read(objects, 0)  # used just now
    leftover = tmp_path / "scratch" / FOLDER / ".tmp-killed"
    leftover.write_bytes(bytes(one))
    os.utime(leftover, (time.time() - 2 * LEFT_OVER_S,) * 2)
    foreign = tmp_path / "scratch" / FOLDER / "mine.txt"
    foreign.write_bytes(b"")
    time.sleep(0.02)
    read(objects, 10)
    assert held_bytes(tmp_path) <= 10 * one
    assert (leftover.exists(), foreign.exists(), objects.notes()) == (False, True, [])
    store.requests.clear()
    for number in (0, 10, 9):
        read(objects, number)
    assert store.requests == []
    read(objects, 1)
    assert len(store.requests) == 2
    for number in range(20):
        read(objects, number)
        assert held_bytes(tmp_path) <= 10 * one
    # the number is lost, or is none: they are counted
    (tmp_path / "scratch" / FOLDER / "held").write_bytes(b"\xff")
    read(objects, 0)
    assert held_bytes(tmp_path) <= 10 * one


def test_what_a_folder_refuses_is_told_once_and_done_without(
    keeps: Keeps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = keeps()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    read(full, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # a disk that takes no more
    try:
        for number in (0, 1, 1, 2):
            read(full, number)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (note,) = full.notes()
    assert "cannot be written (File too large); nothing more is kept" in note
    assert [path.name for path in (tmp_path / "scratch" / FOLDER).glob(".tmp-*")] == []
    assert (full.read_bytes, full.notes()) == (80, [])  # what was kept before is still of use
    for number in range(3):
        read(absent := keeps(folder="not/mounted"), number)
    assert "not/mounted/stillroom-kept cannot be written (No such file or directory)" in absent.notes()[0]
    assert not (tmp_path / "not").exists()
    read(small := keeps(60), 5)
    assert "72 bytes of one shard are more than keep_bytes = 60" in small.notes()[0]
    # a process that was stopped while it made room
    monkeypatch.setattr(kept_module, "LOCK_TRIES", 3)
    with kept_module._locked(tmp_path / "scratch" / FOLDER / "held"):
        read(held_up := keeps(), 6)
    assert len(held_up.notes()) == 1


PROCESS = """
import random, sys
from pathlib import Path
from storage.format.objects import KeptObjects, LocalObjects, Span
groups = sorted(path.relative_to(sys.argv[1]).as_posix() for path in Path(sys.argv[1]).rglob("*.zip"))
objects = KeptObjects(LocalObjects(sys.argv[1]), "one", Path(sys.argv[2]), int(sys.argv[3]))
random.seed(int(sys.argv[4]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[5])):
    for group in random.sample(groups, len(groups)):
        number = int(group.split("/")[-1][:5])
        whole = bytes(number + 3 * at & 255 for at in range(100))
        assert objects.get_ranges(group, [Span(0, 40), Span(60, 100)]) == [whole[:40], whole[60:]], group
print(objects.fetched_bytes, objects.notes())
"""


@pytest.mark.parametrize(("most_bytes", "rounds"), [(10**6, 5), (10 * 72, 40)])
def test_two_processes_share_the_folder_and_fetch_at_most_twice(
    store: Counting, keeps: Keeps, tmp_path: Path, most_bytes: int, rounds: int
) -> None:
    arguments = [str(tmp_path / "store"), str(tmp_path / "scratch"), str(most_bytes)]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *arguments, seed, str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in "12"
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    told = [process.communicate("go\n") for process in both]
    assert [process.returncode for process in both] == [0, 0]
    fetched = [int(out.split(" ", 1)[0]) for out, _ in told]
    assert [out.split(" ", 1)[1] for out, _ in told] == ["[]\n"] * 2
    assert held_bytes(tmp_path) <= most_bytes
    if most_bytes == 10**6:
        assert 20 * 80 <= sum(fetched) <= 2 * 20 * 80
