"""Local folders and object stores behind one small interface: named byte strings, written whole.

Both promise the same: `put` is atomic and durable, and of any number of concurrent `create` calls for one path
exactly one returns True. That is all the concurrency control the cache needs (FORMAT.md, "Commits").
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from storage.errors import BadRequest, CorruptObject, MissingObject, StorageFailure
from storage.format.asking import CLIENT_RETRIES, asked
from storage.format.filesystems import (
    check_size,
    look_at,
    name_once,
    open_new,
    open_regular,
    read_file,
    read_span,
    storage_failure,
    sync_folder,
)
from storage.options import redacted

TEMPORARY_PREFIX = ".tmp-"  # of files that are being written; never listed, left behind only by a kill

T = TypeVar("T")


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
    """Named byte strings below one folder or prefix."""

    url: str

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

    def sweep(self, older_than_s: float) -> int:
        """Delete what killed writes left behind, if it is older than this; return how many."""


class LocalObjects:
    """A folder. Data are synced before they are visible: after a power cut an object is whole or absent."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.url = str(self.root)

    def get(self, path: str, most_bytes: int | None = None) -> bytes:
        with self._readable(path):
            return read_file(self.root / path, most_bytes)

    def get_version(self, path: str) -> tuple[bytes, str]:
        with self._readable(path), open_regular(self.root / path) as file:
            status = os.fstat(file.fileno())  # first: a version of later bytes would vouch for these
            check_size(path, status.st_size)
            return read_span(file.fileno(), 0, status.st_size), _local_version(status)

    def get_ranges(self, path: str, spans: Sequence[Span]) -> list[bytes]:
        with self._readable(path), open_regular(self.root / path) as file:
            return [read_span(file.fileno(), *span) for span in spans]

    @contextlib.contextmanager
    def _readable(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):  # or a file where a folder should be
            raise MissingObject(f"{self.url}/{path} is not there", do=_ask_verify(self.url)) from None
        except ValueError as error:
            raise CorruptObject(f"{self.url}/{path} cannot be read", str(error), do=_ask_verify(self.url)) from None
        except OSError as error:
            raise storage_failure("read", f"{self.url}/{path}", error) from error

    def put(self, path: str, data: bytes) -> None:
        with self._written(path, data) as temporary:
            os.replace(temporary, self.root / path)

    def create(self, path: str, data: bytes) -> bool:
        with self._written(path, data) as temporary:
            return name_once(temporary, self.root / path)

    @contextlib.contextmanager
    def _written(self, path: str, data: bytes) -> Iterator[Path]:
        """Yield a synced temporary file beside `path`; sync the folder after the caller has named it."""
        folder = (self.root / path).parent
        temporary = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"  # beside it: no rename crosses file systems
        try:
            with open_new(temporary) as file:
                view = memoryview(data)
                while view:  # an unbuffered write may be short
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            yield temporary
            with contextlib.suppress(FileNotFoundError):  # deleted again by another process, and the folder with it
                sync_folder(folder)
        except OSError as error:
            raise storage_failure("write", f"{self.url}/{path}", error) from error
        finally:
            # linked, renamed or failed: this name has served
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def list(self, folder: str = "") -> Listing:
        objects, folders = [], []
        with self._listed(folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}".lstrip("/")
                if (status := look_at(entry)) is None:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    folders.append(path)
                elif not entry.name.startswith(TEMPORARY_PREFIX):
                    objects.append(_local_info(path, status))
        return Listing(sorted(objects), sorted(folders))

    def versions(self, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        with self._listed(folder) as entries:
            for entry in entries:
                if names.fullmatch(entry.name) and (status := look_at(entry)) and not stat.S_ISDIR(status.st_mode):
                    yield entry.name, _local_version(status)

    @contextlib.contextmanager
    def _listed(self, folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        """Yield what lies in a folder: nothing in one that is not there."""
        try:
            try:
                found = os.scandir(self.root / folder)
            except (FileNotFoundError, NotADirectoryError):
                yield iter(())  # an empty prefix, or a folder that another process has just deleted
            else:
                with found as entries:
                    yield entries
        except OSError as error:
            raise storage_failure("list", f"{self.url}/{folder}", error) from error

    def walk(self, folder: str = "") -> Iterator[ObjectInfo]:
        listing = self.list(folder)
        yield from listing.objects
        for below in listing.folders:
            yield from self.walk(below)

    def delete(self, path: str) -> None:
        target = self.root / path
        try:
            folder = target.parent.resolve()
            if not folder.is_relative_to(self.root.resolve()):
                raise OSError(errno.EXDEV, f"it leads out of {self.url}, to {folder}")  # by a symbolic link, or ".."
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                target.unlink()
        except OSError as error:
            raise storage_failure("delete", f"{self.url}/{path}", error) from error
        self._remove_empty(target.parent)

    def sweep(self, older_than_s: float) -> int:
        before_s = time.time() - older_than_s
        count = 0
        for folder, _, names in os.walk(self.root):  # not into symbolic links
            for name in names:
                path = Path(folder) / name
                with contextlib.suppress(OSError):  # finished or deleted since the folder was read
                    if name.startswith(TEMPORARY_PREFIX) and path.stat().st_mtime < before_s:
                        path.unlink()
                        self._remove_empty(path.parent)
                        count += 1
        return count

    def _remove_empty(self, folder: Path) -> None:
        """Remove a folder and those above it up to the root, as far as they are empty."""
        while folder != self.root:  # folders exist only through what they hold
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


class RemoteObjects:
    """A prefix of an object store (`s3://`, `gs://`, `az://`), configured by the usual environment variables.

    Each request may be made again, so all are until they are answered: the store's own client gives up where an answer
    ends half-way, and where it cannot know that a second request does no harm.
    """

    def __init__(self, url: str):
        import obstore.store

        self.url = url.rstrip("/")
        try:
            self._store = obstore.store.from_url(self.url, retry_config={"max_retries": CLIENT_RETRIES})
        except Exception as error:
            raise BadRequest(
                f"cannot open {url}", found=str(error), expected="a folder, or s3://bucket/prefix"
            ) from None

    def get(self, path: str, most_bytes: int | None = None) -> bytes:
        return self._asked("read", path, lambda: self._whole(path, most_bytes)[0])

    def get_version(self, path: str) -> tuple[bytes, str]:
        return self._asked("read", path, lambda: self._whole(path, None))

    def get_ranges(self, path: str, spans: Sequence[Span]) -> list[bytes]:
        import obstore
        from obstore.exceptions import BaseError

        starts, stops = [span.start for span in spans], [span.stop for span in spans]

        def ask() -> list[bytes]:
            try:
                return [bytes(part) for part in obstore.get_ranges(self._store, path, starts=starts, ends=stops)]
            except BaseError:
                # To a store, a span beyond the end is an error of its own kind; to whoever checks bytes, too few bytes.
                if obstore.head(self._store, path)["size"] >= max(stops):
                    raise
                whole = bytes(obstore.get(self._store, path).bytes())
                return [whole[start:stop] for start, stop in spans]

        return self._asked("read", path, ask)

    def put(self, path: str, data: bytes) -> None:
        import obstore

        self._asked("write", path, lambda: obstore.put(self._store, path, data))

    def create(self, path: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def ask() -> bool | None:
            try:
                obstore.put(self._store, path, data, mode="create")
            except AlreadyExistsError:
                # Ambiguous: also the answer to a repeated PUT of ours whose first answer was lost, and to a
                # conflict (409) after which nothing is stored. What is there now decides.
                try:
                    return bytes(obstore.get(self._store, path).bytes()) == data
                except FileNotFoundError:
                    return None
            return True

        for _ in range(8):
            if (ours := self._asked("create", path, ask)) is not None:
                return ours
        raise StorageFailure(f"cannot create {self.url}/{path}", found="the store refuses it, yet holds no such object")

    def list(self, folder: str = "") -> Listing:
        import obstore

        found = self._asked("list", folder, lambda: obstore.list_with_delimiter(self._store, folder or None))
        return Listing(sorted(map(_remote_info, found["objects"])), sorted(found["common_prefixes"]))

    def versions(self, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        # by pages, unlike `list`; nothing lies deeper, but for the groups of format 2
        for info in self.walk(folder):
            if names.fullmatch(info.path.removeprefix(f"{folder}/")):
                yield info.path.rsplit("/", 1)[-1], info.version

    def walk(self, folder: str = "") -> Iterator[ObjectInfo]:
        import obstore

        pages, last = iter(obstore.list(self._store, folder or None)), None

        def ask() -> Sequence[Any]:
            nonlocal pages
            try:
                return next(pages, ())
            except BaseException:
                # it has ended with the error; a new one goes on behind what was listed
                pages = iter(obstore.list(self._store, folder or None, offset=last))
                raise

        while page := self._asked("list", folder, ask):
            last = page[-1]["path"]
            yield from map(_remote_info, page)

    def delete(self, path: str) -> None:
        import obstore

        with contextlib.suppress(MissingObject):
            self._asked("delete", path, lambda: obstore.delete(self._store, path))

    def sweep(self, older_than_s: float) -> int:
        return 0  # a PUT is whole or nothing; unfinished uploads are the bucket's own affair

    def _whole(self, path: str, most_bytes: int | None) -> tuple[bytes, str]:
        """Return an object's bytes and their version. Raises CorruptObject: it is too large."""
        import obstore

        found = obstore.get(self._store, path)
        try:
            check_size(path, found.meta["size"], most_bytes)
        except ValueError as error:
            raise CorruptObject(f"{self.url}/{path} cannot be read", str(error), do=_ask_verify(self.url)) from None
        return bytes(found.bytes()), _remote_version(found.meta)

    def _asked(self, verb: str, path: str, ask: Callable[[], T]) -> T:
        """Return what the store answers in the end. Raises MissingObject, StorageFailure, StoreUnavailable."""
        try:
            return asked(verb, f"{self.url}/{path}".rstrip("/"), ask)
        except FileNotFoundError:
            raise MissingObject(f"{self.url}/{path} is not there", do=_ask_verify(self.url)) from None


def open_objects(url: str) -> Objects:
    """Return the objects below a local folder or an object store's prefix.

    Raises:
        BadRequest: the address holds credentials, which would be in every message, and in what is kept of a run.
    """
    if (shown := redacted(url)) != url:
        raise BadRequest(
            f"{shown} holds credentials",
            do="put them into the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if "://" not in url or url.startswith("file:///"):
        return LocalObjects(url.removeprefix("file://"))
    return RemoteObjects(url)


def _ask_verify(url: str) -> str:
    return f"cache verify {url}    # tells what a build can make again, and what only a copy can restore"


def _local_info(path: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(path, status.st_size, _local_version(status), status.st_mtime)


def _local_version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _remote_info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], _remote_version(meta), meta["last_modified"].timestamp())


def _remote_version(meta: Any) -> str:
    # not every store gives ETags
    return str(meta["e_tag"] or meta["last_modified"].isoformat())
