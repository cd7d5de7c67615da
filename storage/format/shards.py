"""What is visible of a cache: shards, and the commit of each.

A commit is a sealed Parquet file with one row per row of the shard, and with the proof in its metadata: which cache and
promises it belongs to, which attempt wrote the arrays, the digest of every byte of them, and where they came from. A
reader sees a shard if and only if its commit is there, and reads only what the commit names; `committing.py` writes
it last.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from storage.errors import CorruptObject, MissingObject, UnsupportedFormat
from storage.format.arrays import array_names
from storage.format.objects import Objects, num_at_once
from storage.format.sealed import seal, unseal
from storage.format.specs import check_uses
from storage.inputs.ragged import OFFSETS
from storage.views import PLAIN

if TYPE_CHECKING:
    from storage.format.promised import ShardPromise

# folders of a dataset that are no teacher's
INGEST = "ingest"
PLAN = "plan"
COMMIT_NAME = re.compile(r"([0-9]{5}|[1-9][0-9]{5,})\.parquet")  # five digits; more from shard 100,000 on
GROUP_NAME = re.compile(r"(\d{5,})-([0-9a-f]{8})\.zarr(\.zip)?")  # a folder in format 2
ATTEMPT = re.compile(r"[0-9a-f]{8}")
DIGEST_COLUMNS = ("digest", "payload_digest", "label_digest")  # of an ingest's table; the first in format 2 alone
OBJECT_PATH = re.compile(
    r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*(/[A-Za-z0-9_\-][A-Za-z0-9_.\-]*)*"
)  # no "..", no leading slash


class ShardKey(NamedTuple):
    """One unit of work and of recovery. `teacher` is None for the ingest of a dataset."""

    dataset: str
    teacher: str | None
    view: str
    shard: int

    @property
    def folder(self) -> str:
        """Where its commit and its attempts lie."""
        return stage_folder(self.dataset, self.teacher, self.view)

    @property
    def commit_path(self) -> str:
        return f"{self.folder}/{self.shard:05d}.parquet"

    def __str__(self) -> str:
        return f"{self.folder}/{self.shard:05d}"


class Belonging(NamedTuple):
    """What a shard belongs to: the cache's id, and the digests of `dataset.json` and, of targets, `teacher.json`."""

    cache: str
    dataset: str
    promise: str | None


class Whole(NamedTuple):
    """The one object that holds all of a Zarr group."""

    size_bytes: int
    digest: str


class Member(NamedTuple):
    """An object of a Zarr group that a commit vouches for.

    Attributes:
        path: within the Zarr group.
        begin: where its bytes begin in the one object that holds the group; 0 in format 2, where each is an object.
    """

    path: str
    begin: int
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Commit:
    """Proof that one shard is whole.

    Attributes:
        key: which shard.
        start, stop: its rows, [start, stop).
        attempt: names the Zarr group that holds its arrays.
        members: every object of that group.
        table: one row per row of the shard, first column `row`.
        about: provenance and counts, JSON.
        whole: the one object that holds the group; None in format 2.
        belonging: what the shard belongs to; None in format 2, where no commit says it.
        uses: what a reader must know to read the arrays, by name.
        asked: the columns of the table that were to be read, as far as it has them; None: all.
        promised: what its arrays are held against when they are read (`storage.format.belonging` says it).
    """

    key: ShardKey
    start: int
    stop: int
    attempt: str
    members: tuple[Member, ...]
    table: pa.Table
    about: dict[str, Any] = field(default_factory=dict)
    whole: Whole | None = None
    belonging: Belonging | None = None
    uses: tuple[str, ...] = ()
    asked: tuple[str, ...] | None = field(default=None, compare=False)
    promised: ShardPromise | None = field(default=None, compare=False, repr=False)

    @property
    def group(self) -> str:
        """Where this attempt's arrays lie: an object, in format 2 a folder."""
        folder = f"{self.key.folder}/{self.key.shard:05d}-{self.attempt}.zarr"
        return folder if self.whole is None else f"{folder}.zip"

    @property
    def size_bytes(self) -> int:
        """The bytes of all that lies there."""
        return sum(member.size_bytes for member in self.members) if self.whole is None else self.whole.size_bytes

    @property
    def promise(self) -> str | None:
        """Of targets, the digest of the `teacher.json` that they were made under, if the commit says it."""
        return self.about.get("promise") if self.belonging is None else self.belonging.promise

    @property
    def array_names(self) -> list[str]:
        """The names of its arrays, sorted; the offsets of an array are no array of their own."""
        return [name for name in self._names if not name.startswith(OFFSETS)]

    @property
    def offsets_names(self) -> list[str]:
        """The names of the arrays that part others into rows, sorted."""
        return [name for name in self._names if name.startswith(OFFSETS)]

    @property
    def _names(self) -> list[str]:
        return array_names(member.path for member in self.members)

    def to_parquet(self) -> bytes:
        """Return the commit's bytes."""
        proof: dict[str, Any] = {"key": self.key, "rows": [self.start, self.stop], "attempt": self.attempt}
        if self.whole is None or self.belonging is None:
            proof["objects"] = [(path, size_bytes, digest) for path, _, size_bytes, digest in self.members]
        else:
            proof |= self.belonging._asdict() | {"object": self.whole, "members": self.members, "uses": self.uses}
        return seal(self.table, proof | {"about": self.about})

    @classmethod
    def from_parquet(
        cls, data: bytes, path: str, *, with_table: bool = True, columns: Sequence[str] | None = None
    ) -> Commit:
        """Return the commit in `data`.

        Args:
            data: what `to_parquet` returned.
            path: where it lies in the cache, for messages and to notice a swapped file.
            with_table: False leaves the table empty and reads the proof only, which is several times faster.
            columns: those of the table that are read beside `row`, as far as it has them; None for all.

        Raises:
            CorruptObject: anything in it is not as it was written.
            UnsupportedFormat: its arrays are stored in a way that this version does not know.
        """
        try:
            read_columns = None if columns is None else ["row", *columns]
            proof, table = unseal(data, with_table=with_table, columns=read_columns, check=_check_num_rows)
            check_uses(path, proof.get("uses", ()))
            key = _key(proof["key"])
            if path != key.commit_path:
                raise ValueError(f"it is the commit of {key}")
            if not ATTEMPT.fullmatch(proof["attempt"]):
                raise ValueError(f"it names objects outside its own group: {proof['attempt']}")
            start, stop = _rows(proof["rows"])
            _check_about(proof["about"], proof.get("promise"))
            read = _stored_in_folder if "objects" in proof else _stored_in_one
            about, asked = {**proof["about"]}, None if columns is None else tuple(columns)
            return cls(key, start, stop, proof["attempt"], table=table, about=about, asked=asked, **read(proof))
        except UnsupportedFormat:  # no fault of the file
            raise
        except Exception as error:  # whatever a file that only looks like a commit leads to
            raise CorruptObject(
                f"{path} is not a whole commit",
                found=str(error) or type(error).__name__,
                do="cache verify CACHE --repair, then cache build JOB.toml",
            ) from None


def _key(said: Any) -> ShardKey:
    """Return the key that a commit says. Raises ValueError, TypeError: it is none, though its path may be right."""
    key = ShardKey(*said)
    kinds = [str, str if key.teacher is not None else type(None), str, int]
    if [type(part) for part in key] != kinds or (key.teacher is None and key.view != PLAIN):
        raise ValueError(f"key {said!r}")
    return key


def _rows(rows: Any) -> tuple[int, int]:
    """Return [start, stop) as a commit says it. Raises ValueError, TypeError: it is none."""
    start, stop = rows
    if type(start) is not int or type(stop) is not int or not 0 <= start <= stop:
        raise ValueError(f"rows {start!r} to {stop!r}")
    return start, stop


def _check_num_rows(proof: dict[str, Any], num_rows: int) -> None:
    """Raise ValueError if a commit's table has other rows than it says, before any of them is read."""
    start, stop = _rows(proof["rows"])
    if num_rows != stop - start:
        raise ValueError(f"{num_rows} rows in a commit of rows {start} to {stop}")


def _check_about(about: dict[str, Any], promise: Any) -> None:
    """Raise ValueError or TypeError if what readers compare or add up is of another type than was ever written."""
    kinds = {"weights": str, "promise": str, "inputs_digest": str, "view_fingerprint": str, "quarantined": int}
    said = {**about} if promise is None else {**about, "promise": promise}
    for name, kind in kinds.items():
        if name in said and not isinstance(said[name], kind):
            raise ValueError(f"{name} = {said[name]!r}")
    said["seconds"] = float(said.get("seconds", 0.0))


def _stored_in_folder(proof: dict[str, Any]) -> dict[str, Any]:
    """Return what a commit of format 2 says of its arrays."""
    members = tuple(Member(path, 0, size_bytes, digest) for path, size_bytes, digest in proof["objects"])
    if outside := [member.path for member in members if not OBJECT_PATH.fullmatch(member.path)]:
        raise ValueError(f"it names objects outside its own group: {proof['attempt']} {outside[:3]}")
    return {"members": members}


def _stored_in_one(proof: dict[str, Any]) -> dict[str, Any]:
    """Return what a commit says of its arrays and of what it belongs to, after checking that all of it can be."""
    whole = Whole(*proof["object"])
    members = tuple(Member(*member) for member in proof["members"])
    inside = all(
        OBJECT_PATH.fullmatch(path) and 0 <= begin <= begin + size_bytes <= whole.size_bytes
        for path, begin, size_bytes, _ in members
    )
    belonging = Belonging(proof["cache"], proof["dataset"], proof["promise"])
    texts = (whole.digest, *(member.digest for member in members), *belonging[:2])
    counts = (whole.size_bytes, *(number for member in members for number in member[1:3]))
    # `type`, not `isinstance`: JSON's true would pass for an int
    if not inside or not all(type(n) is int for n in counts) or not all(type(text) is str for text in texts):
        raise ValueError(f"it names what cannot be in its own group: {whole} {members[:3]}")
    if (belonging.promise is None) != (proof["key"][1] is None):  # targets have one, an ingest has none
        raise ValueError(f"it says {belonging.promise} of a teacher")
    return {"members": members, "whole": whole, "belonging": belonging, "uses": tuple(proof["uses"])}


def stage_folder(dataset: str, teacher: str | None, view: str = PLAIN) -> str:
    """Return the folder of a dataset's ingest (no teacher), or of a teacher's targets for one view."""
    return f"{dataset}/{INGEST}" if teacher is None else f"{dataset}/{teacher}/{view}"


class Committed(Mapping[int, str]):
    """Shard number → version of every commit of a stage, ascending; in columns, for there may be a million.

    Attributes:
        table: `shard` int64 and `version` string.
    """

    def __init__(self, table: pl.DataFrame):
        self.table = table

    @property
    def first(self) -> int:
        """Return the lowest number; there is one."""
        return int(self.table["shard"][0])

    @property
    def last(self) -> int:
        """Return the highest number; there is one."""
        return int(self.table["shard"][-1])

    def __getitem__(self, shard: int) -> str:
        at = self.table["shard"].search_sorted(shard)
        if at == len(self) or self.table["shard"][at] != shard:
            raise KeyError(shard)
        return str(self.table["version"][at])

    def __iter__(self) -> Iterator[int]:
        return iter(self.table["shard"].to_list())

    def __len__(self) -> int:
        return len(self.table)


def list_commits(objects: Objects, folder: str) -> Committed:
    """Return every commit in a stage's folder, from one listing, without reading one."""
    shards, versions = array("q"), list[str]()
    for name, version in objects.versions(folder, COMMIT_NAME):
        shards.append(int(name.removesuffix(".parquet")))
        versions.append(version)
    table = {"shard": pl.Series(np.frombuffer(shards, np.int64)), "version": pl.Series(versions, dtype=pl.String)}
    return Committed(pl.DataFrame(table).sort("shard"))


def read_commits(objects: Objects, paths: list[str], columns: Sequence[str] | None = None) -> list[Commit]:
    """Return the commits at `paths`, read by a few threads at once, without those deleted since they were listed.

    Args:
        objects: the cache.
        paths: of commits.
        columns: those of their tables that are read beside `row`; None for all.
    """

    def read(path: str) -> Commit | None:
        try:
            return Commit.from_parquet(objects.get(path), path, columns=columns)
        except MissingObject:
            return None

    with ThreadPoolExecutor(num_at_once(objects)) as pool:
        return [commit for commit in pool.map(read, paths) if commit is not None]
