"""Files as bytes, compressed ones too: these are unpacked as a stream, of which the last of what was read is kept.

A place in a compressed file is one in what it holds. To get there all before it is unpacked, so that whoever goes on
where another stopped, as one shard goes on behind another, takes up the stream that is open still.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from storage.datasets.base import LocalFile
from storage.errors import MissingSource

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
ENDLESS = 2**62  # the size of a compressed file that nobody has counted
UNPACKED_BYTES = 2**20  # at once
KEPT_BYTES = 16 * 2**20  # behind which a stream can go back; further back it begins anew
KEPT_STREAMS = 4  # in each process


def compressed(suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Return ends of names, and those that the same files have when they are compressed.

    >>> compressed((".jsonl", ".parquet"))  # which is compressed within
    ('.jsonl', '.parquet', '.jsonl.gz', '.jsonl.zst')
    """
    return (*suffixes, *(f"{suffix}{packed}" for suffix in suffixes if suffix != ".parquet" for packed in COMPRESSED))


def kind_of(path: Path) -> str:
    """Return the suffix of a file, or of what is in it, lower-case.

    >>> kind_of(Path("a.parquet")), kind_of(Path("b.JSONL.gz"))
    ('.parquet', '.jsonl')
    """
    return Path(path.stem if is_compressed(path) else path.name).suffix.lower()


def is_compressed(path: Path) -> bool:
    """Return whether a file is to be unpacked."""
    return path.suffix.lower() in COMPRESSED


def size_of(path: Path) -> int:
    """Return how many bytes a file holds; of a compressed one they are counted, once in each process.

    Raises:
        MissingSource: it is not there, or cannot be unpacked.
    """
    return _counted(path, LocalFile.of(path)) if is_compressed(path) else LocalFile.of(path).size


def end_of(path: Path) -> int:
    """Return a number that no place in a file is beyond, without unpacking it."""
    return ENDLESS if is_compressed(path) else LocalFile.of(path).size


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to be read and sought in. Raises MissingSource: it cannot be unpacked."""
    if not is_compressed(path):
        with path.open("rb") as file:
            yield file
        return
    stream = _take(path)
    stream.seek(0)
    yield cast("BinaryIO", stream)
    _put(path, stream)  # one that failed is not taken up again


class _Unpacked:
    """A compressed file as it is unpacked: as much of a file of bytes as is asked of one here."""

    _first: int  # places: of the first byte that is kept, and the one to be read next
    _at: int

    def __init__(self, path: Path):
        self.path, self.version = path, LocalFile.of(path)
        self._asked: int | None = None  # a place to go to
        self._begin()

    def seek(self, to: int) -> None:
        """Go to a place, or to the end if there is no such place, when something is asked of it there."""
        self._asked = to

    def tell(self) -> int:
        if self._asked is not None:
            if self._asked < self._first:
                self._begin()
            self._at = min(self._asked, self._end)
            while self._at < self._asked and self._unpack():
                self._at = min(self._asked, self._end)
            self._asked = None
        return self._at

    def read(self, num_bytes: int) -> bytes:
        stop = self.tell() + num_bytes
        while self._end < stop and self._unpack():
            pass
        return self._taken(stop)

    def readline(self, most: int) -> bytes:
        looked_at = self.tell()
        stop = looked_at + most
        while True:
            found = self._window.find(b"\n", looked_at - self._first, stop - self._first)
            if found >= 0:
                return self._taken(self._first + found + 1)
            looked_at = self._end
            if looked_at >= stop or not self._unpack():
                return self._taken(stop)

    def close(self) -> None:
        self._stream.close()

    def _begin(self) -> None:
        self._stream = pa.input_stream(str(self.path), compression=COMPRESSED[self.path.suffix.lower()])
        self._window = bytearray()
        self._first = self._at = 0

    @property
    def _end(self) -> int:
        return self._first + len(self._window)

    def _taken(self, stop: int) -> bytes:
        data = bytes(self._window[self._at - self._first : stop - self._first])
        self._at += len(data)
        return data

    def _unpack(self) -> bool:
        """Unpack some more; return whether there was any."""
        try:
            data = self._stream.read(UNPACKED_BYTES)
        except OSError as error:
            raise _broken(self.path, error) from None
        self._window += data
        gone = max(0, min(len(self._window) - KEPT_BYTES, self._at - self._first))
        del self._window[:gone]
        self._first += gone
        return bool(data)


_streams: dict[Path, _Unpacked] = {}
_lock = threading.Lock()


def _take(path: Path) -> _Unpacked:
    with _lock:
        stream = _streams.pop(path, None)
    if stream is not None and stream.version == LocalFile.of(path):
        return stream
    try:
        return _Unpacked(path)
    except OSError as error:
        raise _broken(path, error) from None


def _put(path: Path, stream: _Unpacked) -> None:
    with _lock:
        _streams.pop(path, None)
        _streams[path] = stream
        dropped = [_streams.pop(each) for each in list(_streams)[:-KEPT_STREAMS]]
    for each in dropped:
        each.close()


@lru_cache(maxsize=1024)
def _counted(path: Path, version: LocalFile) -> int:
    size = 0
    try:
        with pa.input_stream(str(path), compression=COMPRESSED[path.suffix.lower()]) as stream:
            while data := stream.read(UNPACKED_BYTES):
                size += len(data)
    except OSError as error:
        raise _broken(path, error) from None
    return size


def _broken(path: Path, error: OSError) -> MissingSource:
    return MissingSource(
        f"cannot unpack {path}",
        found=str(error),
        expected=f"a whole file of {COMPRESSED[path.suffix.lower()]}",
        do="write it anew, or unpack it by hand",
    )
