"""A folder of a disk as a store."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from storage.errors import CorruptObject, MissingObject
from storage.format.filesystems import (
    check_place,
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
from storage.format.stores.base import TEMPORARY_PREFIX, Listing, ObjectInfo, Span, ask_verify


class LocalObjects:
    """A folder. Data are synced before they are visible: after a power cut an object is whole or absent."""

    latency_s = 0.0

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
            raise MissingObject(f"{self.url}/{path} is not there", do=ask_verify(self.url)) from None
        except ValueError as error:
            raise CorruptObject(f"{self.url}/{path} cannot be read", str(error), do=ask_verify(self.url)) from None
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

    def check_writable(self) -> None:
        check_place(self.root, within=True)

    def leftovers(self) -> Iterator[ObjectInfo]:
        for folder, _, names in os.walk(self.root):  # not into symbolic links
            for name in names:
                if name.startswith(TEMPORARY_PREFIX):
                    path = Path(folder) / name
                    with contextlib.suppress(OSError):  # finished or deleted since the folder was read
                        yield _local_info(path.relative_to(self.root).as_posix(), path.lstat())

    def now_s(self) -> float:
        with self._written(f"{TEMPORARY_PREFIX}now", b"") as temporary:  # of a network share, its server's clock
            return temporary.stat().st_mtime

    def _remove_empty(self, folder: Path) -> None:
        """Remove a folder and those above it up to the root, as far as they are empty."""
        while folder != self.root:  # folders exist only through what they hold
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


def _local_info(path: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(path, status.st_size, _local_version(status), status.st_mtime)


def _local_version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"
