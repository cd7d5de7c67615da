"""Local folders and object stores behind one small interface: named byte strings, written whole.

Both promise the same: `put` is atomic and durable, and of any number of concurrent `create` calls for one path
exactly one returns True. That is all the concurrency control the cache needs (FORMAT.md, "Commits").
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from storage.errors import BadRequest, MissingObject, StorageFailure

TEMPORARY_PREFIX = ".tmp-"  # of files that are being written; never listed, left behind only by a kill


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object: its path, its size in bytes, and a version that changes whenever the content does."""

    path: str
    size: int
    version: str


class Objects(Protocol):
    """Named byte strings below one folder or prefix."""

    url: str

    def get(self, path: str) -> bytes:
        """Return an object's bytes. Raises MissingObject."""

    def put(self, path: str, data: bytes) -> None:
        """Write an object whole, over any that is there."""

    def create(self, path: str, data: bytes) -> bool:
        """Write an object only if there is none; return whether this call wrote it."""

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Return all objects below a folder, sorted by path."""

    def delete(self, path: str) -> None:
        """Delete an object; one that is not there is not an error."""


class LocalObjects:
    """A folder. Data are synced before they are visible: after a power cut an object is whole or absent."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.url = str(self.root)

    def get(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise MissingObject(f"{self.url}/{path} is not there", do=f"cache verify {self.url} --repair") from None
        except OSError as error:
            raise _storage_failure("read", f"{self.url}/{path}", error) from error

    def put(self, path: str, data: bytes) -> None:
        with self._written(path, data) as temporary:
            os.replace(temporary, self.root / path)

    def create(self, path: str, data: bytes) -> bool:
        with self._written(path, data) as temporary:
            try:
                os.link(temporary, self.root / path)  # atomic, and fails if the name is taken
            except FileExistsError:
                return False
        return True

    @contextlib.contextmanager
    def _written(self, path: str, data: bytes) -> Iterator[Path]:
        """Yield a synced temporary file beside `path`; sync the folder after the caller has named it."""
        folder = (self.root / path).parent
        temporary = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb", buffering=0) as file:
                view = memoryview(data)
                while view:  # an unbuffered write may be short
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            yield temporary
            _sync_folder(folder)
        except OSError as error:
            raise _storage_failure("write", f"{self.url}/{path}", error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        found = []
        folders = [os.path.join(self.url, prefix)]
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(folder))
            except (FileNotFoundError, NotADirectoryError):
                continue  # an empty prefix, or a folder that another process has just deleted
            except OSError as error:
                raise _storage_failure("list", folder, error) from error
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif not entry.name.startswith(TEMPORARY_PREFIX):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        path = os.path.relpath(entry.path, self.url).replace(os.sep, "/")
                        version = f"{status.st_mtime_ns:x}-{status.st_ino:x}"
                        found.append(ObjectInfo(path, status.st_size, version))
        return sorted(found, key=lambda info: info.path)

    def delete(self, path: str) -> None:
        target = self.root / path
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        for folder in target.relative_to(self.root).parents[:-1]:  # folders exist only through what they hold
            try:
                (self.root / folder).rmdir()
            except OSError:
                return


class RemoteObjects:
    """A prefix of an object store (`s3://`, `gs://`, `az://`), configured by the usual environment variables."""

    def __init__(self, url: str):
        import obstore.store

        self.url = url.rstrip("/")
        try:
            self._store = obstore.store.from_url(self.url)
        except Exception as error:
            raise BadRequest(f"cannot open {url}", found=str(error), expected="a folder, or s3://bucket/prefix") from None

    def get(self, path: str) -> bytes:
        import obstore

        with self._failures("read", path):
            return bytes(obstore.get(self._store, path).bytes())

    def put(self, path: str, data: bytes) -> None:
        import obstore

        with self._failures("write", path):
            obstore.put(self._store, path, data)

    def create(self, path: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._failures("create", path):
            for _ in range(8):
                try:
                    obstore.put(self._store, path, data, mode="create")
                except AlreadyExistsError:
                    # Ambiguous: also the answer to a retry of a PUT of ours whose first answer was lost, and to a
                    # conflict (409) after which nothing is stored. What is there now decides.
                    with contextlib.suppress(MissingObject):
                        return self.get(path) == data
                else:
                    return True
        raise StorageFailure(f"cannot create {self.url}/{path}", found="the store refuses it, yet holds no such object")

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        import obstore

        with self._failures("list", prefix):
            found = [
                ObjectInfo(meta["path"], meta["size"], meta["e_tag"] or meta["last_modified"].isoformat())
                for page in obstore.list(self._store, prefix=prefix or None)
                for meta in page
            ]
        return sorted(found, key=lambda info: info.path)

    def delete(self, path: str) -> None:
        import obstore

        with self._failures("delete", path), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, path)

    @contextlib.contextmanager
    def _failures(self, verb: str, path: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            raise MissingObject(f"{self.url}/{path} is not there", do=f"cache verify {self.url} --repair") from None
        except BaseError as error:
            raise _storage_failure(verb, f"{self.url}/{path}", error) from error


def open_objects(url: str) -> Objects:
    """Return the objects below a local folder or an object store's prefix."""
    return RemoteObjects(url) if "://" in url else LocalObjects(url)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


REMEDIES: dict[Any, str] = {
    errno.ENOSPC: "free space on that disk, then run the same command again; what is committed stays",
    errno.EDQUOT: "free space in your quota, then run the same command again; what is committed stays",
    errno.EACCES: "make the folder writable for this user, or name another",
    errno.EROFS: "name a folder that is not on a read-only disk",
}


def _storage_failure(verb: str, path: str, error: Exception) -> StorageFailure:
    code = error.errno if isinstance(error, OSError) else None
    return StorageFailure(
        f"cannot {verb} {path}", found=getattr(error, "strerror", None) or str(error), do=REMEDIES.get(code)
    )
