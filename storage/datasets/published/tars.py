"""Tars of WebDataset: members that lie together and have one key are a sample, and any row is found in a short walk.

Headers alone are looked at, from one to the next, and of some rows it is kept where they begin: a piece of work enters
a tar near its own rows, and nothing is held that grows with the tar but eight bytes a sample while they are counted.
"""

from __future__ import annotations

import contextlib
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import numpy as np
import xxhash

from storage.datasets.base import LocalFile
from storage.datasets.listing import is_left_behind
from storage.errors import MissingSource

KEPT_TARS = 1024  # of which it is kept where rows begin
EVERY = 256  # rows, of which one is kept
ZEROS = 2**20  # bytes behind the end, looked at together
PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")  # how gzip, zstd, bzip2 and xz begin
ZIP = b"PK\x03\x04"


class Member(NamedTuple):
    """Where the bytes of a file in a tar are."""

    offset: int
    size: int


class TarSample(NamedTuple):
    """A sample.

    Attributes:
        key: of all its members, with the folder that they are in.
        begin: where the header of its first member is.
        members: by what follows the key, in lower case and without the dot.
    """

    key: str
    begin: int
    members: dict[str, Member]


class Walk:
    """A tar that is open, gone through from a place on. `passed_over` counts what is no member of a sample."""

    def __init__(self, path: Path, begin: int = 0):
        self.path, self.begin = path, begin
        self.passed_over: Counter[str] = Counter()

    def __enter__(self) -> Self:
        try:
            self.file: BinaryIO = self.path.open("rb")
        except OSError as error:
            raise MissingSource(f"cannot read {self.path}", found=error.strerror) from None
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def samples(self) -> Iterator[TarSample]:
        """Yield the samples, in order. Raises MissingSource: the tar is damaged, or is none."""
        found: TarSample | None = None
        for key, kind, begin, member in self._members():
            if found is None or found.key != key:
                if found is not None:
                    yield found
                found = TarSample(key, begin, {})
            if kind in found.members:
                raise MissingSource(
                    f"{self.path} has two members {key}.{kind}",
                    expected="one member of a kind in a sample",
                    do="write it anew: of two files of one name nobody knows which is meant",
                )
            found.members[kind] = member
        if found is not None:
            yield found

    def bytes_of(self, member: Member) -> bytes:
        """Return what a member holds. Raises MissingSource: the tar ends before."""
        self.file.seek(member.offset)
        data = self.file.read(member.size)
        if len(data) < member.size:
            raise _damaged(self.path, f"a member of {member.size} bytes, of which {len(data)} are there")
        return data

    def _members(self) -> Iterator[tuple[str, str, int, Member]]:
        """Yield (key, kind, where its header is, where its bytes are)."""
        begins = self.file.read(6) if self.begin == 0 else b""
        if begins.startswith(ZIP):
            raise MissingSource(
                f"{self.path} is a zip, no tar", do='unzip it; pictures in folders are kind = "image_folder"'
            )
        if begins.startswith(PACKED):
            raise MissingSource(
                f"{self.path} is compressed, and so cannot be entered in the middle",
                expected="a plain tar: its pictures are compressed already",
                do=f"gunzip {self.path.name}    # or zstd -d, bunzip2, unxz",
            )
        self.file.seek(self.begin)
        with _reading(self.path), tarfile.open(fileobj=self.file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                name = info.name.removeprefix("./")
                folder, _, base = name.rpartition("/")
                stem, dot, kind = base.partition(".")
                if info.isdir():
                    continue
                if is_left_behind(base):
                    self.passed_over["._*" if base.startswith("._") else ".*" if base.startswith(".") else base] += 1
                elif not info.isreg() or info.issparse():
                    self.passed_over["what is no regular file"] += 1
                elif not dot or not stem:
                    self.passed_over["files without a suffix"] += 1
                else:
                    key = f"{folder}/{stem}" if folder else stem
                    yield key, kind.lower(), info.offset, Member(info.offset_data, info.size)
            self._check_end(tar.offset)

    def _check_end(self, at: int) -> None:
        """Check that a tar ends with zeros and nothing else: the library takes any damage for its end."""
        self.file.seek(at)
        block = self.file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise _damaged(self.path, f"no mark of its end, at byte {at}")
        while block:
            if block.strip(b"\0"):
                raise _damaged(self.path, f"no header at byte {at}")
            at, block = at + len(block), self.file.read(ZEROS)


class Counted(NamedTuple):
    """What is known of a tar when all of it was gone through: its samples, and what is no member of one."""

    rows: int
    passed_over: Counter[str]


class Places:
    """Where rows of a tar begin, as far as somebody has gone: every so many are kept."""

    def __init__(self, path: Path):
        self.path = path
        self._begins = {0: 0}  # a dict: two threads may add the same

    def count(self) -> Counted:
        """Return how many samples there are. Raises MissingSource: members of one do not lie together, or damage."""
        keys = array("Q")
        with Walk(self.path) as walk:
            for row, sample in enumerate(walk.samples()):
                self._keep(row, sample)
                keys.append(_hash(sample.key))
        once, counts = np.unique(np.frombuffer(keys, np.uint64), return_counts=True) if keys else ([], np.array([]))
        if (counts > 1).any():
            self._refuse_twice(set(np.asarray(once)[counts > 1].tolist()))
        return Counted(len(keys), walk.passed_over)

    def samples(self, position: int, rows: int) -> Iterator[tuple[Walk, TarSample]]:
        """Yield the samples [position, position + rows), with the open tar that they are in."""
        first = max(known for known in list(self._begins) if known <= position)
        with Walk(self.path, self._begins[first]) as walk:
            for row, sample in enumerate(walk.samples(), start=first):
                self._keep(row, sample)
                if row >= position + rows:
                    return
                if row >= position:
                    # reading moves the place in the file; the library goes where it must
                    yield walk, sample

    def _keep(self, row: int, sample: TarSample) -> None:
        if row % EVERY == 0:
            self._begins[row] = sample.begin

    def _refuse_twice(self, hashes: set[int]) -> None:
        seen: set[str] = set()
        with Walk(self.path) as walk:
            for sample in walk.samples():
                if sample.key in seen:
                    raise MissingSource(
                        f"the members of sample {sample.key} do not lie together in {self.path}",
                        found=f"{', '.join(sample.members)} further down, behind those of other samples",
                        expected="all members of a sample one after the other: WebDataset takes these for two",
                        do="tar --sort=name -cf NEW.tar FOLDER; or mend two samples of one key",
                    )
                if _hash(sample.key) in hashes:
                    seen.add(sample.key)


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode(errors="surrogateescape"))


def places_of(path: Path) -> Places:
    """Return where the rows of a tar begin, as far as this process knows. Raises MissingSource: there is no such."""
    return _places(path, LocalFile.of(path))


@lru_cache(maxsize=KEPT_TARS)
def _places(path: Path, version: LocalFile) -> Places:
    return Places(path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the latter two of sizes that no file has
        raise _damaged(path, str(error)) from None
    except OSError as error:
        raise MissingSource(f"cannot read {path}", found=error.strerror) from None


def _damaged(path: Path, found: str) -> MissingSource:
    return MissingSource(
        f"{path} is no whole tar",
        found=found,
        expected="members up to the zeros that end a tar, and nothing behind them",
        do="copy or write it anew: samples would be missing",
    )
