"""What every store gives: named byte strings below one folder or prefix, written whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple, Protocol

TEMPORARY_PREFIX = ".tmp-"  # of files that are being written; never listed, left behind only by a kill
# A Zarr group, or of format 2 a member of one: of one attempt, which is written once; a commit vouches for its bytes.
OF_A_GROUP = re.compile(r"(.*/)?\d{5,}-[0-9a-f]{8}\.zarr(\.zip|/.*)")


# Requests that are made at a time of small objects: what disks answer side by side; and of a store as many as keep this
# machine busy with the answers while others travel, of which it parses one in so many seconds.
LEAST_AT_ONCE, MOST_AT_ONCE, ANSWER_S = 8, 64, 0.0005
# Shards that are fetched while others are worked on, and their bytes as they are stored.
MOST_AHEAD, AHEAD_BYTES = 32, 2**26
ROUND_TRIPS = 2  # of a shard: its commits, then their arrays
SHARD_S = 0.005  # of a small one, on this machine; the others travel meanwhile


class ObjectInfo(NamedTuple):
    """One listed object: its path, its size, a version that changes with the content, and its age in Unix seconds."""

    path: str
    size_bytes: int
    version: str
    modified_s: float


class Listing(NamedTuple):
    """What lies directly in one folder: objects, and the paths of folders, both sorted."""

    objects: list[ObjectInfo]
    folders: list[str]


class Span(NamedTuple):
    """Bytes [start, stop) of an object."""

    start: int
    stop: int


class Objects(Protocol):
    """Named byte strings below one folder or prefix.

    Attributes:
        url: where.
        latency_s: the shortest that a request took so far; 0 on a disk, whose answers are there at once.
    """

    url: str

    @property
    def latency_s(self) -> float: ...

    def get(self, path: str, most_bytes: int | None = None) -> bytes:
        """Return an object's bytes, of which there may be so many. Raises MissingObject, CorruptObject."""

    def get_version(self, path: str) -> tuple[bytes, str]:
        """Return an object's bytes and their version. Raises MissingObject."""

    def get_ranges(self, path: str, spans: Sequence[Span]) -> list[bytes]:
        """Return the bytes of some spans of an object, shorter where it ends before. Raises MissingObject."""

    def put(self, path: str, data: bytes) -> None:
        """Write an object whole, over any that is there."""

    def create(self, path: str, data: bytes) -> bool:
        """Write an object only if there is none; return whether this call wrote it."""

    def list(self, folder: str = "") -> Listing:
        """Return what lies directly in a folder; a folder that is not there is empty."""

    def versions(self, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        """Yield name and version of the objects directly in a folder whose whole names match, in any order.

        As `list`, for folders of a million objects: what does not match costs next to nothing.
        """

    def walk(self, folder: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below a folder, at any depth."""

    def delete(self, path: str) -> None:
        """Delete an object; one that is not there is not an error."""

    def check_writable(self) -> None:
        """Raise BadRequest where nothing can ever be written, before anything is spent on what is to be."""

    def leftovers(self) -> Iterator[ObjectInfo]:
        """Yield what killed writes left behind, and what is being written now; no listing shows it."""

    def now_s(self) -> float:
        """Return the time, in Unix seconds, by the clock that dates objects, which may not be this machine's.

        Writes an object that no listing of a cache minds, and deletes it.
        """


def num_at_once(objects: Objects) -> int:
    """Return how many small objects to ask for at a time, by how long a request takes."""
    return ceil(min(max(LEAST_AT_ONCE, objects.latency_s / ANSWER_S), MOST_AT_ONCE))


def most_ahead(shard_bytes: int) -> int:
    """Return how many shards are fetched ahead at most, of so many bytes each: those that are far away."""
    return min(MOST_AHEAD, AHEAD_BYTES // max(1, shard_bytes))


def num_ahead(latency_s: float, shard_bytes: int) -> int:
    """Return how many shards to fetch ahead, so that this machine is busy while they travel.

    Args:
        latency_s: from a request to its answer.
        shard_bytes: of the largest shard.

    >>> num_ahead(0.0, 3_000_000), num_ahead(0.02, 3_000_000), num_ahead(0.2, 30_000_000)
    (0, 8, 2)
    """
    return ceil(min(ROUND_TRIPS * latency_s / SHARD_S, most_ahead(shard_bytes)))


def ask_verify(url: str) -> str:
    """Return what to do about an object that is missing or damaged."""
    return f"cache verify {url}    # tells what a build can make again, and what only a copy can restore"
