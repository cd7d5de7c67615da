"""One shard on disk: its arrays first, its commit last, so that a kill leaves nothing visible; read as the commit says.

A Zarr group is one object, a stored zip: a shard is read by one request for each run of neighbouring arrays, whatever
their number. In a cache of format 2 a group is a folder, and each of its members an object.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from storage.digests import digest
from storage.errors import CorruptObject, NotInCache, StillroomError, StoreUnavailable
from storage.format.arrays import DTYPES, METADATA, pack, read_shape, unpack
from storage.format.objects import Objects, Span
from storage.format.shards import OBJECT_PATH, Belonging, Commit, Member, ShardKey, Whole
from storage.format.zips import join_spans, pack_zip
from storage.inputs.ragged import OFFSETS, Ragged, join_offsets, split_offsets

AnyRows = TypeVar("AnyRows", np.ndarray, Ragged)
Bytes = bytes | memoryview


def write_shard(
    objects: Objects,
    key: ShardKey,
    *,
    rows: tuple[int, int],
    arrays: Mapping[str, np.ndarray | Ragged],
    table: pa.Table,
    about: dict[str, Any],
    belonging: Belonging | None,
    uses: tuple[str, ...] = (),
) -> Commit | None:
    """Write a shard's arrays, then its commit; return the commit, or None if another attempt was first.

    Args:
        objects: the cache.
        key: which shard.
        rows: [start, stop).
        arrays: name to array, first axis S = stop - start, or to S rows of their own length.
        table: S rows, first column `row`.
        about: provenance, JSON.
        belonging: what the shard belongs to; None writes it as format 2 has it.
        uses: what a reader must know to read the values of the arrays, by name.

    Raises:
        ValueError: an array or the table has another number of rows, or a type or name that no reader would take.
        StorageFailure: the disk or store refused; the shard is not visible, or it is whole.
    """
    start, stop = rows
    shapes = {name: _shape(array_S) for name, array_S in arrays.items()}
    for name, shape in {"the table": table.shape, **shapes}.items():
        if shape[:1] != (stop - start,):
            raise ValueError(f"{key}: {name} has shape {shape}, the shard has {stop - start} rows")
    stored = split_offsets(arrays)
    for name, array in stored.items():
        if array.dtype.name not in DTYPES or not OBJECT_PATH.fullmatch(name):
            raise ValueError(f"{key}: cannot store an array {name!r} of {array.dtype}")
    uses = (*("own_length",) * (stored.keys() != arrays.keys()), *uses)
    if belonging is None and uses:
        raise ValueError(f"{key}: a cache of format 2 cannot hold {', '.join(uses)}")
    # attempt and members are those of each writing
    empty = Commit(key, start, stop, "", (), table, about, belonging=belonging, uses=uses)
    return _write(objects, empty, pack(stored))


def copy_shard(
    source: Objects, commit: Commit, target: Objects, about: dict[str, Any], belonging: Belonging | None
) -> Commit | None:
    """Copy a shard to another cache, every array as it is; return its commit there, or None if another was first.

    Args:
        source: where it lies.
        commit: with its table.
        target: where it is to be, under the same key.
        about: what the copy says of itself.
        belonging: what the copy belongs to; None writes it as format 2 has it.

    Raises:
        CorruptObject: an object is not what the commit vouches for.
        StorageFailure: the disk or store refused; the copy is not visible, or it is whole.
    """
    copy = replace(commit, about=about, belonging=belonging)
    return _write(target, copy, {path: bytes(data) for path, data in read_members(source, commit).items()})


def _write(objects: Objects, commit: Commit, members: Mapping[str, bytes]) -> Commit | None:
    """Write a Zarr group under an attempt of its own, then its commit; return it, or None if another was first."""
    # What is read together lies together: an array, and before it its offsets.
    members = {path: members[path] for path in sorted(members, key=lambda path: (path.removeprefix(OFFSETS), path))}
    whole, begins = None, dict.fromkeys(members, 0)
    # in format 2 each member is an object of its own
    objects_of_group: dict[str, bytes] = {f"/{path}": data for path, data in members.items()}
    if commit.belonging is not None:
        data, begins = pack_zip(members)
        whole, objects_of_group = Whole(len(data), digest(data)), {"": data}
    named = tuple(Member(path, begins[path], len(data), digest(data)) for path, data in members.items())
    # random: no two attempts share an object
    commit = replace(commit, attempt=uuid.uuid4().hex[:8], members=named, whole=whole)
    del members  # a shard may be large: only one copy of it from here on
    try:
        for path, data in objects_of_group.items():
            objects.put(commit.group + path, data)
    except StoreUnavailable:
        raise  # it would not answer this either; `cache verify --repair` collects what lies there
    except BaseException:
        with contextlib.suppress(StillroomError):  # the first failure is the one to tell
            delete_group(objects, commit)  # of no use to anybody, and a full disk needs the room
        raise
    # Last: a reader trusts only what a commit names. A failure or a signal here may come after the commit is visible,
    # so the group is left; if it was not, the group is garbage that `cache verify --repair` collects.
    if not objects.create(commit.key.commit_path, commit.to_parquet()):
        delete_group(objects, commit)
        return None
    return commit


def read_arrays(
    objects: Objects, commit: Commit, names: Iterable[str], *, writeable: bool = True
) -> dict[str, np.ndarray]:
    """Return the named arrays of a shard, (S, …) each, every byte checked against its digest.

    Args:
        objects: the cache.
        commit: of the shard.
        names: of the arrays.
        writeable: False where they are only to be copied: they lie over the bytes that were read, then.

    Raises:
        NotInCache: the shard has no such array.
        CorruptObject: an object is missing, truncated or altered, or an array is of rows of their own length.
    """
    return of_kind(np.ndarray, commit, read_stored(objects, commit, names, writeable=writeable))


def read_row_shape(objects: Objects, commit: Commit, name: str) -> tuple[int, ...]:
    """Return the shape of one row of a shard's array, or of one item, from the array's metadata alone.

    Raises:
        NotInCache: the shard has no such array.
        CorruptObject: the metadata are not what was committed, or not of an array of this shard's rows.
    """
    _check_named(commit, name)
    metadata = [member for member in commit.members if member.path == f"{name}/{METADATA}"]
    try:
        shape = read_shape(name, _fetch(objects, commit, metadata))
    except ValueError as error:
        raise CorruptObject(f"{commit.group} does not hold the arrays it names", found=str(error)) from None
    if OFFSETS + name not in commit.offsets_names:
        _check_rows(commit, name, shape)
    return shape[1:]  # (S, …) less its rows


def read_ragged(objects: Objects, commit: Commit, names: Iterable[str], *, writeable: bool = True) -> dict[str, Ragged]:
    """Return the named arrays of a shard whose rows are of their own length, S rows each; otherwise as `read_arrays`.

    Raises:
        NotInCache: the shard has no such array.
        CorruptObject: an object is missing, truncated or altered, or an array is of rows that are all alike.
    """
    return of_kind(Ragged, commit, read_stored(objects, commit, names, writeable=writeable))


def of_kind(kind: type[AnyRows], commit: Commit, arrays: Mapping[str, np.ndarray | Ragged]) -> dict[str, AnyRows]:
    """Return arrays, all of the kind that dataset.json says of them. Raises CorruptObject: one is of the other."""
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


def read_stored(
    objects: Objects, commit: Commit, names: Iterable[str], *, writeable: bool = True
) -> dict[str, np.ndarray | Ragged]:
    """Return the named arrays of a shard, each as the promise has it, alike or of its own length; as `read_arrays`."""
    names = list(names)
    return unpack_checked(commit, fetch_arrays(objects, commit, names), names, writeable=writeable)


def fetch_arrays(objects: Objects, commit: Commit, names: Iterable[str]) -> dict[str, Bytes]:
    """Return the members of the named arrays by path, each checked against its digest, for `unpack_checked`.

    Raises:
        NotInCache: the shard has no such array.
        CorruptObject: an object is missing, truncated or altered.
    """
    wanted = []
    for name in names:
        _check_named(commit, name)
        # its own, and those of its offsets
        wanted += [m for m in commit.members if m.path.removeprefix(OFFSETS).startswith(f"{name}/")]
    return _fetch(objects, commit, wanted)


def _fetch(objects: Objects, commit: Commit, wanted: list[Member]) -> dict[str, Bytes]:
    """Return some members of a shard's Zarr group by path, after checking each."""
    if commit.whole is None:
        found: dict[str, Bytes] = {m.path: objects.get(f"{commit.group}/{m.path}") for m in wanted}
    else:
        spans = join_spans(Span(m.begin, m.begin + m.size_bytes) for m in wanted)
        parts = [memoryview(data) for data in objects.get_ranges(commit.group, spans)]
        # each in the one span that holds it
        found = {
            m.path: part[m.begin - span.start : m.begin - span.start + m.size_bytes]
            for m in wanted
            for span, part in zip(spans, parts, strict=True)
            if span.start <= m.begin and m.begin + m.size_bytes <= span.stop
        }
    for member in wanted:
        _check(objects, commit, f"/{member.path}", found[member.path], member.size_bytes, member.digest)
    return found


def read_members(objects: Objects, commit: Commit) -> dict[str, Bytes]:
    """Return all members of a shard's Zarr group by path, after checking every byte of what holds them.

    Raises:
        CorruptObject: they are not what the commit vouches for, or an object is missing.
    """
    found = read_group(objects, commit)
    if commit.whole is None:
        return {path[1:]: data for path, data in found.items()}
    return {m.path: found[""][m.begin : m.begin + m.size_bytes] for m in commit.members}


def read_group(objects: Objects, commit: Commit) -> dict[str, Bytes]:
    """Return the objects of a shard's Zarr group as they lie, by what follows its own path; as `read_members`."""
    if commit.whole is None:
        return {f"/{path}": data for path, data in _fetch(objects, commit, list(commit.members)).items()}
    data = memoryview(objects.get(commit.group, commit.whole.size_bytes))
    _check(objects, commit, "", data, *commit.whole)
    for member in commit.members:  # each by itself too: who reads an array checks only these
        part = data[member.begin : member.begin + member.size_bytes]
        _check(objects, commit, f"/{member.path}", part, member.size_bytes, member.digest)
    return {"": data}


def _check(objects: Objects, commit: Commit, path: str, data: Bytes, size_bytes: int, expected: str) -> None:
    """Check bytes against what a commit says of them."""
    if len(data) != size_bytes or digest(data) != expected:
        raise CorruptObject(
            f"{objects.url}/{commit.group}{path} is not what was committed",
            found=f"{len(data)} bytes, digest {digest(data)}",
            expected=f"{size_bytes} bytes, digest {expected}",
            do=f"cache verify {objects.url} --repair, then build the shard again",
        )


def unpack_checked(
    commit: Commit, found: Mapping[str, Bytes], names: Iterable[str], *, writeable: bool = True
) -> dict[str, np.ndarray | Ragged]:
    """Return the named arrays of a shard from its members, after checking that they are what is promised of them.

    Raises:
        CorruptObject: they are not, or not what they say.
    """
    names, promised = list(names), commit.promised

    def check(name: str, shape: tuple[int, ...], dtype: str, stored_bytes: int) -> None:
        if promised is not None:  # what a program has written itself, it may read without a promise
            promised.check_layout(commit, name, shape, dtype, stored_bytes)

    offsets = [OFFSETS + name for name in names if f"{OFFSETS}{name}/{METADATA}" in found]
    try:
        arrays = join_offsets(unpack(found, [*names, *offsets], writeable=writeable, check=check))
    except ValueError as error:
        raise CorruptObject(f"{commit.group} does not hold the arrays it names", found=str(error)) from None
    for name, array_S in arrays.items():
        _check_rows(commit, name, _shape(array_S))
    if promised is not None:
        promised.check_values(commit, arrays)
    return arrays


def _check_named(commit: Commit, name: str) -> None:
    if name not in commit.array_names:
        raise NotInCache(f"{commit.key} has no array {name}", found=", ".join(commit.array_names))


def _check_rows(commit: Commit, name: str, shape: tuple[int, ...]) -> None:
    if shape[:1] != (commit.stop - commit.start,):
        raise CorruptObject(
            f"{commit.group}/{name} is not of this shard",
            found=f"shape {shape}",
            expected=f"{commit.stop - commit.start} rows",
        )


def _shape(array_S: np.ndarray | Ragged) -> tuple[int, ...]:
    return (len(array_S),) if isinstance(array_S, Ragged) else array_S.shape


def delete_group(objects: Objects, commit: Commit) -> None:
    """Delete the Zarr group that a commit names, and nothing of any other attempt."""
    delete_attempt(objects, commit.group)


def delete_attempt(objects: Objects, group: str) -> None:
    """Delete a Zarr group: an object, or of format 2 a folder."""
    paths = [group] if group.endswith(".zip") else [info.path for info in objects.walk(group)]
    for path in paths:
        objects.delete(path)
