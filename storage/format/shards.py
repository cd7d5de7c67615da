"""One shard on disk: its arrays first, its commit last.

A commit is a sealed Parquet file with one row per row of the shard, and with the proof in its metadata: which attempt
wrote the arrays, the digest of every object, and where they came from. A reader sees a shard if and only if its commit
is there, and reads only what the commit names.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from storage.digests import digest
from storage.errors import CorruptObject, MissingObject, NotInCache, StillroomError
from storage.format.arrays import DTYPES, METADATA, array_names, pack, unpack
from storage.format.objects import Objects
from storage.format.sealed import seal, unseal
from storage.inputs.ragged import OFFSETS, Ragged, join_offsets, split_offsets
from storage.views import PLAIN

INGEST = "ingest"
PLAN = "plan"
COMMIT_NAME = re.compile(r"(\d{5,})\.parquet")
GROUP_NAME = re.compile(r"(\d{5,})-([0-9a-f]{8})\.zarr")
ATTEMPT = re.compile(r"[0-9a-f]{8}")
AnyRows = TypeVar("AnyRows", np.ndarray, Ragged)
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


class StoredObject(NamedTuple):
    """An object that a commit vouches for; `path` is within the attempt's group."""

    path: str
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class Commit:
    """Proof that one shard is whole.

    Attributes:
        key: which shard.
        start, stop: its rows, [start, stop).
        attempt: names the group that holds its arrays.
        objects: every object of that group.
        table: one row per row of the shard, first column `row`.
        about: provenance and counts, JSON.
    """

    key: ShardKey
    start: int
    stop: int
    attempt: str
    objects: tuple[StoredObject, ...]
    table: pa.Table
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The folder of this attempt's arrays."""
        return f"{self.key.folder}/{self.key.shard:05d}-{self.attempt}.zarr"

    @property
    def array_names(self) -> list[str]:
        """The names of its arrays, sorted; the offsets of an array are no array of their own."""
        return [name for name in array_names(stored.path for stored in self.objects) if not name.startswith(OFFSETS)]

    def to_parquet(self) -> bytes:
        """Return the commit's bytes."""
        proof = {
            "key": self.key,
            "rows": [self.start, self.stop],
            "attempt": self.attempt,
            "objects": self.objects,
            "about": self.about,
        }
        return seal(self.table, proof)

    @classmethod
    def from_parquet(cls, data: bytes, path: str, *, with_table: bool = True) -> Commit:
        """Return the commit in `data`.

        Args:
            data: what `to_parquet` returned.
            path: where it lies in the cache, for messages and to notice a swapped file.
            with_table: False leaves the table empty and reads the proof only, which is several times faster.

        Raises:
            CorruptObject: anything in it is not as it was written.
        """
        try:
            proof, table = unseal(data, with_table=with_table)
            key = ShardKey(*proof["key"])
            if path != key.commit_path:
                raise ValueError(f"it is the commit of {key}")
            objects = tuple(StoredObject(*stored) for stored in proof["objects"])
            outside = [stored.path for stored in objects if not OBJECT_PATH.fullmatch(stored.path)]
            if outside or not ATTEMPT.fullmatch(proof["attempt"]):
                raise ValueError(f"it names objects outside its own group: {proof['attempt']} {outside[:3]}")
            start, stop = proof["rows"]
            if with_table and len(table) != stop - start:
                raise ValueError(f"{len(table)} rows in a commit of rows {start} to {stop}")
            return cls(key, start, stop, proof["attempt"], objects, table, {**proof["about"]})
        except Exception as error:  # whatever a file that only looks like a commit leads to
            raise CorruptObject(
                f"{path} is not a whole commit",
                found=str(error) or type(error).__name__,
                do="cache verify CACHE --repair, then cache build JOB.toml",
            ) from None


def stage_folder(dataset: str, teacher: str | None, view: str = PLAIN) -> str:
    """Return the folder of a dataset's ingest (no teacher), or of a teacher's targets for one view."""
    return f"{dataset}/{INGEST}" if teacher is None else f"{dataset}/{teacher}/{view}"


def write_shard(
    objects: Objects,
    key: ShardKey,
    *,
    rows: tuple[int, int],
    arrays: Mapping[str, np.ndarray | Ragged],
    table: pa.Table,
    about: dict[str, Any],
) -> Commit | None:
    """Write a shard's arrays, then its commit; return the commit, or None if another attempt was first.

    Args:
        objects: the cache.
        key: which shard.
        rows: [start, stop).
        arrays: name to array, first axis S = stop - start, or to S rows of their own length.
        table: S rows, first column `row`.
        about: provenance, JSON.

    Raises:
        ValueError: an array or the table has another number of rows, or a type or name that no reader would take.
        StorageFailure: the disk or store refused; the shard is not visible, or it is whole.
    """
    start, stop = rows
    for name, shape in {
        "the table": table.shape,
        **{name: _shape(array_S) for name, array_S in arrays.items()},
    }.items():
        if shape[:1] != (stop - start,):
            raise ValueError(f"{key}: {name} has shape {shape}, the shard has {stop - start} rows")
    stored_arrays = split_offsets(arrays)
    for name, array in stored_arrays.items():
        if array.dtype.name not in DTYPES or not OBJECT_PATH.fullmatch(name):
            raise ValueError(f"{key}: cannot store an array {name!r} of {array.dtype}")
    packed = pack(stored_arrays)
    stored = tuple(StoredObject(path, len(data), digest(data)) for path, data in sorted(packed.items()))
    commit = Commit(key, start, stop, _new_attempt(), stored, table, about)
    return commit if _write(objects, commit, packed) else None


def copy_shard(source: Objects, commit: Commit, target: Objects, about: dict[str, Any]) -> Commit | None:
    """Copy a shard to another cache, every object as it is; return its commit there, or None if another was first.

    Args:
        source: where it lies.
        commit: with its table.
        target: where it is to be, under the same key.
        about: what the copy says of itself.

    Raises:
        CorruptObject: an object is not what the commit vouches for.
        StorageFailure: the disk or store refused; the copy is not visible, or it is whole.
    """
    packed = {stored.path: get_checked(source, commit, stored) for stored in commit.objects}
    copy = replace(commit, attempt=_new_attempt(), about=about)
    return copy if _write(target, copy, packed) else None


def _new_attempt() -> str:
    return uuid.uuid4().hex[:8]


def _write(objects: Objects, commit: Commit, packed: Mapping[str, bytes]) -> bool:
    """Write a group's objects, then its commit; return whether no other attempt was first."""
    try:
        for path, data in packed.items():
            objects.put(f"{commit.group}/{path}", data)
    except BaseException:
        with contextlib.suppress(StillroomError):  # the first failure is the one to tell
            _delete_group(objects, commit)  # of no use to anybody, and a full disk needs the room
        raise
    # Last: a reader trusts only what a commit names. A failure or a signal here may come after the commit is visible,
    # so the group is left; if it was not, the group is garbage that `cache verify --repair` collects.
    if not objects.create(commit.key.commit_path, commit.to_parquet()):
        _delete_group(objects, commit)
        return False
    return True


def read_arrays(
    objects: Objects, commit: Commit, names: Iterable[str], *, writeable: bool = True
) -> dict[str, np.ndarray]:
    """Return the named arrays of a shard, (S, …) each, every object checked against its digest.

    Args:
        objects: the cache.
        commit: of the shard.
        names: of the arrays.
        writeable: False where they are only to be copied: they lie over the bytes that were read, then.

    Raises:
        NotInCache: the shard has no such array.
        CorruptObject: an object is missing, truncated or altered, or an array is of rows of their own length.
    """
    return of_kind(np.ndarray, commit, _read(objects, commit, names, writeable=writeable))


def read_ragged(objects: Objects, commit: Commit, names: Iterable[str], *, writeable: bool = True) -> dict[str, Ragged]:
    """Return the named arrays of a shard whose rows are of their own length, S rows each; otherwise as `read_arrays`.

    Raises:
        NotInCache: the shard has no such array.
        CorruptObject: an object is missing, truncated or altered, or an array is of rows that are all alike.
    """
    return of_kind(Ragged, commit, _read(objects, commit, names, writeable=writeable))


def of_kind(kind: type[AnyRows], commit: Commit, arrays: Mapping[str, np.ndarray | Ragged]) -> dict[str, AnyRows]:
    """Return arrays, all of one kind; whoever reads one knows from dataset.json which it must be."""
    found: dict[str, AnyRows] = {}
    for name, array_S in arrays.items():
        if not isinstance(array_S, kind):
            raise CorruptObject(
                f"{commit.group}/{name} is not of this dataset",
                found="rows of their own length" if isinstance(array_S, Ragged) else f"rows of {array_S.shape[1:]}",
                expected="rows of their own length if, and only if, dataset.json says so",
                do="cache verify CACHE --repair, then cache build JOB.toml",
            )
        found[name] = array_S
    return found


def _read(objects: Objects, commit: Commit, names: Iterable[str], *, writeable: bool) -> dict[str, np.ndarray | Ragged]:
    names = list(names)
    wanted = []
    for name in names:
        if name not in commit.array_names:
            raise NotInCache(f"{commit.key} has no array {name}", found=", ".join(commit.array_names))
        wanted += [s for s in commit.objects if s.path.removeprefix(OFFSETS).startswith(f"{name}/")]
    found = {stored.path: get_checked(objects, commit, stored) for stored in wanted}
    return unpack_checked(commit, found, names, writeable=writeable)


def unpack_checked(
    commit: Commit, found: Mapping[str, bytes], names: Iterable[str], *, writeable: bool = True
) -> dict[str, np.ndarray | Ragged]:
    """Return the named arrays of a shard from its objects. Raises CorruptObject if they are not what they say."""
    names = list(names)
    offsets = [OFFSETS + name for name in names if f"{OFFSETS}{name}/{METADATA}" in found]
    try:
        arrays = join_offsets(unpack(found, [*names, *offsets], writeable=writeable))
    except ValueError as error:
        raise CorruptObject(f"{commit.group} does not hold the arrays it names", found=str(error)) from None
    for name, array_S in arrays.items():
        if _shape(array_S)[:1] != (commit.stop - commit.start,):
            raise CorruptObject(
                f"{commit.group}/{name} is not of this shard",
                found=f"shape {_shape(array_S)}",
                expected=f"{commit.stop - commit.start} rows",
            )
    return arrays


def _shape(array_S: np.ndarray | Ragged) -> tuple[int, ...]:
    return (len(array_S),) if isinstance(array_S, Ragged) else array_S.shape


def get_checked(objects: Objects, commit: Commit, stored: StoredObject) -> bytes:
    """Return the bytes of one object of a shard, after checking them.

    Raises:
        CorruptObject: they are not what the commit vouches for, or the object is missing.
    """
    path = f"{commit.group}/{stored.path}"
    data = objects.get(path)
    if len(data) != stored.size_bytes or digest(data) != stored.digest:
        raise CorruptObject(
            f"{objects.url}/{path} is not what was committed",
            found=f"{len(data)} bytes, digest {digest(data)}",
            expected=f"{stored.size_bytes} bytes, digest {stored.digest}",
            do=f"cache verify {objects.url} --repair, then build the shard again",
        )
    return data


def list_commits(objects: Objects, folder: str) -> dict[int, str]:
    """Return shard number → version of every commit in a stage's folder, without reading one."""
    commits = {}
    for info in objects.list(folder).objects:
        match = COMMIT_NAME.fullmatch(info.path.rsplit("/", 1)[-1])
        if match:
            commits[int(match[1])] = info.version
    return commits


def read_commits(objects: Objects, paths: list[str], *, with_table: bool = True) -> list[Commit]:
    """Return the commits at `paths`, read by a few threads at once, without those deleted since they were listed."""

    def read(path: str) -> Commit | None:
        try:
            return Commit.from_parquet(objects.get(path), path, with_table=with_table)
        except MissingObject:
            return None

    with ThreadPoolExecutor(max_workers=8) as pool:
        return [commit for commit in pool.map(read, paths) if commit is not None]


def delete_folder(objects: Objects, folder: str) -> None:
    """Delete every object below a folder."""
    for info in objects.walk(folder):
        objects.delete(info.path)


def _delete_group(objects: Objects, commit: Commit) -> None:
    for stored in commit.objects:
        objects.delete(f"{commit.group}/{stored.path}")
