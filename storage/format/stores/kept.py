"""A store, and a folder of this machine that keeps what was read of its shards: they are fetched once, not every epoch.

Only parts of Zarr groups are kept. A group is of one attempt and never changes, and a commit vouches for its bytes;
commits, promises and the ledger are asked of the store every time, so what is seen of a cache is what is there now.

    <folder>/stillroom-kept/
      held                    how many bytes the others are; locked by whoever makes room
      <32 digits>.kept        32 digits of a digest, then the bytes of one span of one group
      .tmp-…                  being written; it has its name when it is whole

The name is the digest of cache, group and span. All processes of a machine share the folder, without a server: a file
gets its name by a rename, so it is never seen half, and the oldest use (the time of the file) goes first.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path

from storage.digests import digest
from storage.format.filesystems import lock, look_at, open_regular, read_span
from storage.format.stores.base import OF_A_GROUP, TEMPORARY_PREFIX, Listing, ObjectInfo, Objects, Span

FOLDER = "stillroom-kept"
HELD = "held"
SUFFIX = ".kept"
DIGEST_BYTES = 32
LOCK_TRIES, LOCK_WAIT_S = 100, 0.01  # a process that was stopped while it makes room holds up nobody
LEFT_OVER_S = 3600.0  # as old is no file that is still being written
SHARE_LEFT = 0.9  # of the bound, once something had to go: not every file is to look at all others


class KeptObjects:
    """A store whose shards are kept below a folder of this machine. Reads are thread-safe.

    A kept file that is not what it was is dropped, and its bytes are read again. Whatever the folder refuses (it is
    full, not there, of somebody else) is told once, and the store does without.

    Args:
        objects: the store.
        cache_id: the identity of the cache in it; other caches may be kept in the same folder.
        folder: on a disk of this machine; it must be there, such as /scratch.
        most_bytes: of all that is kept in the folder.

    Attributes:
        read_bytes: of shards, out of the folder, since it was opened.
        fetched_bytes: of shards, from the store.
    """

    def __init__(self, objects: Objects, cache_id: str, folder: Path, most_bytes: int):
        self.url = objects.url
        self.folder = folder
        self.read_bytes = self.fetched_bytes = 0
        self._objects = objects
        self._cache_id = cache_id
        self._below = folder / FOLDER
        self._most_bytes = most_bytes
        self._keeps = True  # until the folder refuses
        self._notes: deque[str] = deque(maxlen=100)
        self._lock = threading.Lock()

    @property
    def latency_s(self) -> float:
        return self._objects.latency_s

    def notes(self) -> list[str]:
        """Return what went wrong with the folder since this was asked last."""
        with self._lock:
            notes = list(self._notes)
            self._notes.clear()
        return notes

    def get(self, path: str, most_bytes: int | None = None) -> bytes:
        if not OF_A_GROUP.fullmatch(path):
            return self._objects.get(path, most_bytes)
        name = self._name(path, None)
        if (data := self._read(name)) is None:
            data = self._objects.get(path, most_bytes)
            self._keep(name, data)
        return data

    def get_ranges(self, path: str, spans: Sequence[Span]) -> list[bytes]:
        if not OF_A_GROUP.fullmatch(path):
            return self._objects.get_ranges(path, spans)
        names = [self._name(path, span) for span in spans]
        found = [self._read(name) for name in names]
        absent = [at for at, data in enumerate(found) if data is None]
        if absent:
            fetched = self._objects.get_ranges(path, [spans[at] for at in absent])
            for at, data in zip(absent, fetched, strict=True):
                found[at] = data
                self._keep(names[at], data)
        return [data for data in found if data is not None]

    def get_version(self, path: str) -> tuple[bytes, str]:
        return self._objects.get_version(path)

    def put(self, path: str, data: bytes) -> None:
        self._objects.put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        return self._objects.create(path, data)

    def list(self, folder: str = "") -> Listing:
        return self._objects.list(folder)

    def versions(self, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        return self._objects.versions(folder, names)

    def walk(self, folder: str = "") -> Iterator[ObjectInfo]:
        return self._objects.walk(folder)

    def delete(self, path: str) -> None:
        self._objects.delete(path)

    def check_writable(self) -> None:
        self._objects.check_writable()

    def leftovers(self) -> Iterator[ObjectInfo]:
        return self._objects.leftovers()

    def now_s(self) -> float:
        return self._objects.now_s()

    def _name(self, path: str, span: Span | None) -> str:
        return digest("\0".join(map(str, (self._cache_id, path, *(span or ())))).encode())

    def _read(self, name: str) -> bytes | None:
        """Return what is kept under a name, if it is whole."""
        path = self._below / f"{name}{SUFFIX}"
        try:
            with open_regular(path) as file:
                said = read_span(file.fileno(), 0, DIGEST_BYTES)
                data = read_span(file.fileno(), DIGEST_BYTES, os.fstat(file.fileno()).st_size)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # or it is no file at all
            self._tell(f"{path} cannot be read ({_reason(error)}); it is fetched from {self.url}")
            return None
        if said != _seal(name, data):
            with contextlib.suppress(OSError):
                path.unlink()
            self._tell(f"{path} was damaged on its disk; it was dropped, and is fetched from {self.url} again")
            return None
        with contextlib.suppress(OSError):  # gone since, or of another user
            os.utime(path)
        with self._lock:
            self.read_bytes += len(data)
        return data

    def _keep(self, name: str, data: bytes) -> None:
        """Keep some bytes that were fetched, unless the folder refuses."""
        with self._lock:
            self.fetched_bytes += len(data)
        num_bytes = DIGEST_BYTES + len(data)
        if not self._keeps:
            return
        if num_bytes > self._most_bytes:
            self._stop(f"{num_bytes:,} bytes of one shard are more than keep_bytes = {self._most_bytes:,}")
            return
        temporary = self._below / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            self._reserve(temporary, num_bytes)
            with open(temporary, "r+b", buffering=0) as file:
                for part in (_seal(name, data), data):
                    view = memoryview(part)
                    while view:  # an unbuffered write may be short
                        view = view[file.write(view) :]
            os.replace(temporary, self._below / f"{name}{SUFFIX}")  # not synced: what a power cut leaves is dropped
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._stop(f"{self._below} cannot be written ({_reason(error)})")

    def _reserve(self, temporary: Path, num_bytes: int) -> None:
        """Make a new file that has its size already, for which there is room below the bound. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self._below.mkdir()  # never its parent: a disk that is not mounted would be the root's
        with _locked(self._below / HELD) as held_file:
            held_bytes = _number(os.pread(held_file.fileno(), 32, 0))
            if held_bytes is None or held_bytes + num_bytes > self._most_bytes:
                held_bytes = self._make_room(num_bytes)
            with open(temporary, "xb", buffering=0) as file:
                file.truncate(num_bytes)  # it counts from here on
            os.pwrite(held_file.fileno(), f"{held_bytes + num_bytes:<32d}".encode(), 0)

    def _make_room(self, num_bytes: int) -> int:
        """Delete files of the oldest use, until there is room for so many bytes; return how many are left."""
        files, held_bytes = [], 0
        with os.scandir(self._below) as entries:
            for entry in entries:
                if (status := look_at(entry)) is None or not stat.S_ISREG(status.st_mode) or entry.name == HELD:
                    continue
                if entry.name.startswith(TEMPORARY_PREFIX) and status.st_mtime > time.time() - LEFT_OVER_S:
                    held_bytes += status.st_size
                elif entry.name.startswith(TEMPORARY_PREFIX) or entry.name.endswith(SUFFIX):  # nothing but our own
                    files.append((status.st_mtime_ns, status.st_size, entry.path))
        held_bytes += sum(size_bytes for _, size_bytes, _ in files)
        if held_bytes + num_bytes <= self._most_bytes:
            return held_bytes
        for _, size_bytes, path in sorted(files):
            if held_bytes + num_bytes <= self._most_bytes * SHARE_LEFT:
                break
            with contextlib.suppress(FileNotFoundError):  # who reads it has it open
                os.unlink(path)
            held_bytes -= size_bytes
        return held_bytes

    def _stop(self, why: str) -> None:
        """Keep nothing more from here on; what is kept is still read."""
        with self._lock:
            told, self._keeps = not self._keeps, False
        if not told:
            self._tell(f"{why}; nothing more is kept, and shards are fetched from {self.url} as they are needed")

    def _tell(self, note: str) -> None:
        with self._lock:
            self._notes.append(note)


def _seal(name: str, data: bytes) -> bytes:
    """Return what stands before kept bytes: a digest of them and of their name."""
    return digest(f"{name} {digest(data)}".encode()).encode()


def _number(text: bytes) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[FileIO]:
    """Yield a file that no other process or thread holds. Raises OSError: it cannot be had, or locked."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0) as file:
        for left in reversed(range(LOCK_TRIES)):
            try:
                if not lock(file):
                    raise OSError("its disk has no locks")
                break
            except BlockingIOError:
                if not left:
                    raise
            time.sleep(LOCK_WAIT_S)
        yield file
