"""A prefix of an object store, by obstore."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from storage.errors import BadRequest, CorruptObject, MissingObject, StorageFailure
from storage.format.filesystems import check_size
from storage.format.stores.asking import CLIENT_RETRIES, asked
from storage.format.stores.base import TEMPORARY_PREFIX, Listing, ObjectInfo, Span, ask_verify
from storage.format.stores.refusals import refused, told
from storage.options import redacted

ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
ADDRESS = re.compile(r"https?://[^/\s]+(/\S*)?", re.IGNORECASE)

T = TypeVar("T")


class RemoteObjects:
    """A prefix of an object store (`s3://`, `gs://`, `az://`), configured by the usual environment variables.

    Each request may be made again, so all are until they are answered: the store's own client gives up where an answer
    ends half-way, and where it cannot know that a second request does no harm.
    """

    CLIENT: Mapping[str, Any] = {}

    def __init__(self, url: str):
        import obstore.store

        _check_endpoints(url)
        self.url = url.rstrip("/")
        self.latency_s = math.inf  # nothing was asked yet
        self._has_parts = True  # until it says that it gives whole objects only
        try:
            self._store = obstore.store.from_url(self.url, retry_config={"max_retries": CLIENT_RETRIES}, **self.CLIENT)
        except Exception as error:
            raise BadRequest(
                f"cannot open {url}",
                found=told(str(error)),
                expected="a folder, s3://bucket/prefix, or https://…",
            ) from None

    def get(self, path: str, most_bytes: int | None = None) -> bytes:
        return self._asked("read", path, lambda: self._whole(path, most_bytes)[0])

    def get_version(self, path: str) -> tuple[bytes, str]:
        return self._asked("read", path, lambda: self._whole(path, None))

    def version(self, path: str) -> str:
        """Return the version of an object, without its bytes. Raises MissingObject."""
        import obstore

        return _remote_version(self._asked("read", path, lambda: obstore.head(self._store, path)))

    def get_ranges(self, path: str, spans: Sequence[Span]) -> list[bytes]:
        import obstore
        from obstore.exceptions import BaseError, NotSupportedError

        starts, stops = [span.start for span in spans], [span.stop for span in spans]

        def ask() -> list[bytes]:
            try:
                if self._has_parts:
                    return [bytes(part) for part in obstore.get_ranges(self._store, path, starts=starts, ends=stops)]
            except NotSupportedError:  # a simple web server
                self._has_parts = False
            except BaseError:
                # To a store, a span beyond the end is an error of its own kind; to whoever checks bytes, too few bytes.
                if obstore.head(self._store, path)["size"] >= max(stops):
                    raise
            whole = bytes(obstore.get(self._store, path).bytes())
            return [whole[start:stop] for start, stop in spans]

        return self._asked("read", path, ask)

    def put(self, path: str, data: bytes) -> None:
        import obstore

        def ask() -> None:
            try:
                obstore.put(self._store, path, data)  # of more than 5 MiB in parts, many at a time
            except FileNotFoundError:
                # No such upload: it was whole, and the answer that said so was lost. Or no such bucket, again.
                obstore.put(self._store, path, data, use_multipart=False)

        self._asked("write", path, ask)

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

    def check_writable(self) -> None:
        pass  # the store itself says so, at the first write

    def leftovers(self) -> Iterator[ObjectInfo]:
        return iter(())  # a PUT is whole or nothing; unfinished uploads are the bucket's own affair

    def now_s(self) -> float:
        import obstore

        path = f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        self.put(path, b"")
        try:
            return float(
                self._asked("read", path, lambda: obstore.head(self._store, path))["last_modified"].timestamp()
            )
        finally:
            self.delete(path)

    def _whole(self, path: str, most_bytes: int | None) -> tuple[bytes, str]:
        """Return an object's bytes and their version. Raises CorruptObject: it is too large."""
        import obstore

        found = obstore.get(self._store, path)
        try:
            check_size(path, found.meta["size"], most_bytes)
        except ValueError as error:
            raise CorruptObject(f"{self.url}/{path} cannot be read", str(error), do=ask_verify(self.url)) from None
        return bytes(found.bytes()), _remote_version(found.meta)

    def _asked(self, verb: str, path: str, ask: Callable[[], T]) -> T:
        """Return what the store answers in the end.

        Raises:
            MissingObject, StorageFailure, StoreRefused, StoreUnavailable.
        """

        def timed() -> T:
            begin_s = time.monotonic()
            found = ask()
            if verb == "read":  # a page of a list may be there already; of all, the least: others wait, or are large
                self.latency_s = min(self.latency_s, time.monotonic() - begin_s)
            return found

        try:
            return asked(verb, f"{self.url}/{path}".rstrip("/"), timed)
        except FileNotFoundError:
            if verb in ("write", "create"):  # which need no object
                raise refused(verb, f"{self.url}/{path}", "NoSuchBucket") from None
            raise MissingObject(f"{self.url}/{path} is not there", do=ask_verify(self.url)) from None


def _check_endpoints(url: str) -> None:
    """Raise BadRequest if the environment names an address of the store that is none: its client would panic."""
    for name in ENDPOINTS.get(url.partition("://")[0].lower(), ()):
        if (value := os.environ.get(name)) is not None and not ADDRESS.fullmatch(value):
            raise BadRequest(
                f"{name} in the environment is no address of a store",
                found=redacted(value) or "nothing",
                expected="https://host, or http://host:port",
                do=f"mend it, or unset {name}",
            )


def _remote_info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], _remote_version(meta), meta["last_modified"].timestamp())


def _remote_version(meta: Any) -> str:
    # not every store gives ETags
    return str(meta["e_tag"] or meta["last_modified"].isoformat())
