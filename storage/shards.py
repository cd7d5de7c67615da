"""One shard on disk: its arrays first, its commit last.

A commit is a Parquet file with one row per row of the shard, and with the proof in its metadata: which attempt wrote
the arrays, the digest of every object, and where they came from. A reader sees a shard if and only if its commit is
there, and reads only what the commit names.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from storage.arrays import pack, unpack
from storage.digests import digest
from storage.errors import CorruptObject, NotInCache
from storage.objects import Objects
from storage.views import PLAIN

INGEST = "ingest"
PLAN = "plan"
COMMIT_NAME = re.compile(r"(\d{5,})\.parquet")
GROUP_NAME = re.compile(r"(\d{5,})-([0-9a-f]{8})\.zarr")


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
        """The names of its arrays, sorted."""
        return sorted({stored.path.split("/c/")[0] for stored in self.objects if "/c/" in stored.path})

    def to_parquet(self) -> bytes:
        """Return the commit's bytes."""
        proof = json.dumps(
            {
                "key": self.key,
                "rows": [self.start, self.stop],
                "attempt": self.attempt,
                "objects": self.objects,
                "table_digest": table_digest(self.table),
                "about": self.about,
            }
        ).encode()
        sink = BytesIO()
        metadata = {"stillroom": proof, "stillroom.digest": digest(proof).encode()}
        pq.write_table(self.table.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
        return sink.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes, path: str, *, with_table: bool = True) -> Commit:
        """Return the commit in `data`.

        Args:
            data: what `to_parquet` returned.
            path: where it was read, for messages and to notice a swapped file.
            with_table: False leaves the table empty and reads the proof only, which is several times faster.

        Raises:
            CorruptObject: anything in it is not as it was written.
        """
        try:
            file = pq.ParquetFile(BytesIO(data), page_checksum_verification=True)
            metadata = file.schema_arrow.metadata or {}
            proof_bytes = metadata[b"stillroom"]
            if digest(proof_bytes) != metadata[b"stillroom.digest"].decode():
                raise ValueError("the proof does not match its digest")
            proof = json.loads(proof_bytes)
            key = ShardKey(*proof["key"])
            if not path.endswith(key.commit_path):
                raise ValueError(f"it is the commit of {key}")
            table = (file.read() if with_table else file.schema_arrow.empty_table()).replace_schema_metadata(None)
            if with_table and table_digest(table) != proof["table_digest"]:
                raise ValueError("the table does not match its digest")
        except Exception as error:  # pyarrow raises many kinds on damaged bytes
            raise CorruptObject(f"{path} is not a whole commit", found=str(error) or type(error).__name__) from None
        objects = tuple(StoredObject(*stored) for stored in proof["objects"])
        return cls(key, *proof["rows"], proof["attempt"], objects, table, proof["about"])


def stage_folder(dataset: str, teacher: str | None, view: str = PLAIN) -> str:
    """Return the folder of a dataset's ingest (no teacher), or of a teacher's targets for one view."""
    return f"{dataset}/{INGEST}" if teacher is None else f"{dataset}/{teacher}/{view}"


def write_shard(
    objects: Objects,
    key: ShardKey,
    *,
    rows: tuple[int, int],
    arrays: Mapping[str, np.ndarray],
    table: pa.Table,
    about: dict[str, Any],
) -> Commit | None:
    """Write a shard's arrays, then its commit; return the commit, or None if another attempt was first.

    Args:
        objects: the cache.
        key: which shard.
        rows: [start, stop).
        arrays: name to array, first axis S = stop - start.
        table: S rows, first column `row`.
        about: provenance, JSON.
    """
    start, stop = rows
    for name, array_S in arrays.items():
        if len(array_S) != stop - start:
            raise ValueError(f"{key}: {name} has {len(array_S)} rows, the shard has {stop - start}")
    packed = pack(arrays)
    stored = tuple(StoredObject(path, len(data), digest(data)) for path, data in sorted(packed.items()))
    commit = Commit(key, start, stop, uuid.uuid4().hex[:8], stored, table, about)
    try:
        for path, data in packed.items():
            objects.put(f"{commit.group}/{path}", data)
        won = objects.create(key.commit_path, commit.to_parquet())  # last: a reader trusts only what a commit names
    except BaseException:
        _delete_group(objects, commit)  # of no use to anybody, and a full disk needs the room
        raise
    if not won:
        _delete_group(objects, commit)
        return None
    return commit


def read_arrays(objects: Objects, commit: Commit, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return the named arrays of a shard, (S, …) each, every object checked against its digest.

    Raises:
        NotInCache: the shard has no such array.
        CorruptObject: an object is missing, truncated or altered.
    """
    names = list(names)
    wanted = []
    for name in names:
        if name not in commit.array_names:
            raise NotInCache(f"{commit.key} has no array {name}", found=", ".join(commit.array_names))
        wanted += [stored for stored in commit.objects if stored.path.startswith(f"{name}/")]
    found = {stored.path: get_checked(objects, commit, stored) for stored in wanted}
    arrays = unpack(found, names)
    for name, array_S in arrays.items():
        if len(array_S) != commit.stop - commit.start:
            raise CorruptObject(f"{commit.group}/{name} has {len(array_S)} rows", expected=f"{commit.stop - commit.start}")
    return arrays


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
    """Return the commits at `paths`, read by a few threads at once."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(lambda path: Commit.from_parquet(objects.get(path), path, with_table=with_table), paths))


def table_digest(table: pa.Table) -> str:
    """Return a digest of names, types and values of a flat table, whatever file it went through."""
    hasher = xxhash.xxh3_128()
    for name in table.column_names:
        column = table[name].combine_chunks()
        hasher.update(f"{name}:{column.type}".encode())
        hasher.update(column.is_null().to_numpy(zero_copy_only=False))
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            values = [value or "" for value in column.to_pylist()]
            hasher.update(np.array([len(value) for value in values], dtype=np.int64))
            hasher.update("".join(values).encode())
        else:
            hasher.update(np.ascontiguousarray(column.fill_null(0).to_numpy(zero_copy_only=False)))
    return hasher.hexdigest()


def delete_shard(objects: Objects, commit_path: str) -> None:
    """Delete a shard, its commit first, so that no reader meets a commit without its objects."""
    objects.delete(commit_path)
    folder, name = commit_path.rsplit("/", 1)
    for group in objects.list(folder).folders:
        match = GROUP_NAME.fullmatch(group.rsplit("/", 1)[-1])
        if match and match[1] == name.removesuffix(".parquet"):
            delete_folder(objects, group)


def delete_folder(objects: Objects, folder: str) -> None:
    """Delete every object below a folder."""
    for info in objects.walk(folder):
        objects.delete(info.path)


def _delete_group(objects: Objects, commit: Commit) -> None:
    for stored in commit.objects:
        objects.delete(f"{commit.group}/{stored.path}")
