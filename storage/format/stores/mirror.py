"""Sources in an object store: a copy of their files on this machine, where every kind reads them as any others.

    <folder>/<digest of the address>/<last part of the address>     the file, or the folder of files

A pattern has a folder of its own, too: of two below one prefix neither takes from the other what it does not name.

`fetched` is the one door: a build goes through it before it looks at a source, a worker before it reads its rows; who
uses a student, by `at_hand`, for its folder and for what it is asked about. What is there already, of the same size and
version, is not asked for again; what the store has no more, is dropped. A copied file's time is made of its version in
the store, so that on every machine it is the same, and a change is seen as on a disk.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import xxhash
from pydantic import PlainSerializer, PlainValidator, ValidationInfo

from storage.digests import digest
from storage.errors import BadRequest, MissingSource, gib
from storage.format.stores.base import ObjectInfo, Span
from storage.format.stores.remote import RemoteObjects
from storage.format.stores.web import SCHEMES
from storage.options import against_job, redacted

VARIABLE = "STILLROOM_SOURCES"  # of the environment: the folder of copies
PART_BYTES = 2**24  # of a file, that are in memory at once
THREADS = 8
SECOND_NS = 10**9
BRACES = re.compile(r"\{[^{}]*\}")


class StorePath(type(Path())):  # type: ignore[misc]  # PosixPath; a path of its own kind, for `/` and all else
    """Where the copy of a source lies, or will.

    Attributes:
        url: of the source.
    """

    url: str


class Fetched(NamedTuple):
    """What was copied: files, and bytes of them."""

    files: int
    num_bytes: int

    @property
    def told(self) -> list[str]:
        """Return what a user is told of it, a line; of nothing, none."""
        size = gib(self.num_bytes) if self.num_bytes >= 2**27 else f"{self.num_bytes:,} bytes"
        files = f"{self.files:,} file{'s' * (self.files != 1)}"
        return [f"copied to this machine: {files}, {size}, in {folder_of_copies()}"] if self.files else []


def folder_of_copies() -> Path:
    """Return the folder of copies: that of `STILLROOM_SOURCES`, or one of this user's for temporary files."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(tempfile.gettempdir()) / f"stillroom-sources-{os.getuid()}"


def store_path(url: str) -> StorePath:
    """Return where the copy of an address lies, without looking. Raises ValueError: such an address has no listing."""
    if redacted(url) != url:
        raise ValueError(f"{redacted(url)} holds credentials, which belong into the environment")
    scheme, _, rest = url.partition("://")
    if url.lower().startswith(SCHEMES) or scheme == "file" or not rest.strip("/"):
        raise ValueError(
            f"{url} cannot be read as a source: name a path, or s3://bucket/prefix (gs://, az://), "
            "whose files are copied to this machine"
        )
    fixed, pattern = _parts(url)
    if "://" not in fixed or fixed.endswith("://"):
        raise ValueError(f"{url} is a pattern of buckets: name one bucket, and the pattern below it")
    path = StorePath(
        folder_of_copies() / digest(url.rstrip("/").encode()) / (fixed.rsplit("/", 1)[-1] or "files") / pattern
    )
    path.url = url
    return path


def _parts(url: str) -> tuple[str, str]:
    """Return the address without what has braces, and that.

    >>> _parts("s3://b/tars/a-{0..3}.tar"), _parts("s3://b/rows/")
    (('s3://b/tars', 'a-{0..3}.tar'), ('s3://b/rows', ''))
    """
    url = url.rstrip("/")
    if not (found := BRACES.search(url)):
        return url, ""
    fixed = url[: found.start()].rpartition("/")[0]
    return fixed, url[len(fixed) + 1 :]


def at_hand(given: str, *, depth: int | None = None) -> tuple[Path, list[str]]:
    """Return where a path, or what lies at an address in an object store, is on this machine, and what is told of that.

    Args:
        given: as a command is given it.
        depth: of folders of a folder from which files are wanted; 0: only what lies in it; None: all.

    Raises:
        BadRequest: such an address has no listing; or as `fetched`.
        MissingSource, StorageFailure, StoreUnavailable: as `fetched`.
    """
    if "://" not in given:
        return Path(given), []
    try:
        path = store_path(given)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    copied = fetched(path, depth=depth)
    return path, [] if copied is None else copied.told


def fetched(path: Path, *, depth: int | None = None) -> Fetched | None:
    """Have the files of a source at hand, and return what was copied for it; None: it lies on a disk.

    Args:
        path: of the source.
        depth: as of `at_hand`; not of a pattern.

    Raises:
        MissingSource: there is nothing, or it changes meanwhile.
        BadRequest: the disk has no room for it, or cannot be written; or the folder is not this user's alone.
        StorageFailure, StoreUnavailable: as the store says.
    """
    if not isinstance(path, StorePath):
        return None
    fixed, pattern = _parts(path.url)
    copy = Path(str(path)[: -len(pattern) - 1]) if pattern else Path(path)
    objects, infos = _listed(fixed, pattern, depth)
    if not infos:
        raise MissingSource(f"there is nothing at {path.url}", expected="an object, or some whose names begin so")
    wanted = {_place(copy, name, info): info for name, info in infos.items()}
    try:
        _check_own(folder_of_copies())
        return _copied(objects, copy, wanted, path.url)
    except OSError as error:
        raise BadRequest(
            f"{path.url} cannot be copied to this machine",
            found=str(error),
            do=f"{VARIABLE}=FOLDER, which can be written",
        ) from error


def _check_own(folder: Path) -> None:
    """Make the folder of copies; raise BadRequest if it is by default where others may have made it, or may look."""
    if os.environ.get(VARIABLE):  # as its user wants it
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise BadRequest(
            f"{folder} is not this user's alone, and copies of a bucket would lie there",
            found=f"{stat.filemode(status.st_mode)} of user {status.st_uid}",
            expected=f"drwx------ of user {os.getuid()}",
            do=f"chmod 700 {folder}, if it is yours; or {VARIABLE}=FOLDER",
        )


def _copied(objects: RemoteObjects, copy: Path, wanted: Mapping[Path, ObjectInfo], url: str) -> Fetched:
    """Copy what is not there, and return what that was."""
    _drop(copy, wanted)
    todo = {place: info for place, info in wanted.items() if not _is_there(place, info)}
    if not todo:
        return Fetched(0, 0)
    num_bytes = sum(info.size_bytes for info in todo.values())
    copy.parent.mkdir(parents=True, exist_ok=True)
    if num_bytes > (free := shutil.disk_usage(copy.parent).free):
        raise BadRequest(
            f"the disk has no room for a copy of {url}",
            found=f"{gib(num_bytes)} to be copied, {gib(free)} free in {folder_of_copies()}",
            do=f"{VARIABLE}=FOLDER, on a larger disk",
        )
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(lambda each: _copy(objects, *each), todo.items()):
            pass
    return Fetched(len(todo), num_bytes)


def _listed(fixed: str, pattern: str, depth: int | None) -> tuple[RemoteObjects, dict[str, ObjectInfo]]:
    """Return what lies at an address, by the name below it; of one object "" is its name."""
    objects = RemoteObjects(fixed)
    there = objects.list().objects if depth == 0 and not pattern else objects.walk()
    infos = {info.path: info for info in there if not info.path.endswith("/")}
    if depth is not None and not pattern:
        infos = {name: info for name, info in infos.items() if name.count("/") <= depth}
    if pattern:
        glob = BRACES.sub("*", pattern)
        return objects, {name: info for name, info in infos.items() if fnmatchcase(name, glob)}
    above, _, name = fixed.rpartition("/")
    if infos or above.endswith(":/") or "://" not in above:
        return objects, infos
    objects = RemoteObjects(above)  # one object has nothing below it
    one = [info for info in objects.list().objects if info.path == name]
    return objects, dict(zip([""], one, strict=False))


def _place(copy: Path, name: str, info: ObjectInfo) -> Path:
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute() or "\0" in name:
        raise MissingSource(f"an object has a name that is no path: {info.path!r}", do="rename it")
    return copy.joinpath(*parts)


def _drop(copy: Path, wanted: Mapping[Path, ObjectInfo]) -> None:
    """Delete what the store has no more; a place may have become a folder, or the reverse."""
    if copy.is_file() and copy not in wanted:
        copy.unlink()
    for file in list(_files(copy)) if copy.is_dir() else ():
        if file not in wanted and not file.name.startswith(".tmp-"):
            file.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    for at, _, names in os.walk(folder):
        yield from (Path(at) / name for name in names)


def _time_ns(info: ObjectInfo) -> int:
    """Return a file's time: the second of the object's, and in its fraction what the version is."""
    return int(info.modified_s) * SECOND_NS + xxhash.xxh3_64_intdigest(info.version.encode()) % SECOND_NS


def _is_there(place: Path, info: ObjectInfo) -> bool:
    try:
        status = place.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (info.size_bytes, _time_ns(info))


def _copy(objects: RemoteObjects, place: Path, info: ObjectInfo) -> None:
    """Copy an object; its copy has its name once it is whole, and of the version that was listed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    begun = place.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        with begun.open("wb") as file:
            if info.size_bytes <= PART_BYTES:
                part, version = objects.get_version(info.path)
                file.write(part)
            else:
                for start in range(0, info.size_bytes, PART_BYTES):
                    span = Span(start, min(start + PART_BYTES, info.size_bytes))
                    file.write(*objects.get_ranges(info.path, [span]))
                version = objects.version(info.path)
            size = file.tell()
        if (size, version) != (info.size_bytes, info.version):
            raise MissingSource(
                f"{objects.url}/{info.path} changed while it was copied",
                found=f"{size:,} bytes of version {version}",
                expected=f"{info.size_bytes:,} bytes of version {info.version}",
                do="leave the data alone while they are read, then run the same command again",
            )
        os.utime(begun, ns=(_time_ns(info), _time_ns(info)))
        begun.replace(place)
    finally:
        begun.unlink(missing_ok=True)


def _source_path(value: Any, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("write a path, or an address such as s3://bucket/prefix, in quotes")  # noqa: TRY004 - told so
    return store_path(value) if "://" in value else Path(against_job(value, info))


def as_text(path: Path) -> str:
    """Return what a user calls a path: the address of which it is a copy, if it is one."""
    return path.url if isinstance(path, StorePath) else str(path)


SourcePath = Annotated[Path, PlainValidator(_source_path), PlainSerializer(as_text, when_used="json")]
"""Where a source lies: a path, relative to the job's folder, or the address of files in an object store."""
