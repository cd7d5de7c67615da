"""A published cache on a web server: read in place, by its index; nothing is ever written there."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import NoReturn

from storage.digests import digest
from storage.errors import BadRequest, CorruptObject, MissingObject, NotInCache
from storage.format.stores.base import OF_A_GROUP, Listing, ObjectInfo, ask_verify
from storage.format.stores.index import INDEX, Index
from storage.format.stores.remote import RemoteObjects

SCHEMES = ("http://", "https://")


class WebObjects(RemoteObjects):
    """What lies below an address of a web server, of which only whole files and parts of them can be asked for.

    The index says what there is. It is read once: what is published later is seen by whoever opens the cache then.
    """

    CLIENT = {"client_options": {"allow_http": True}}  # noqa: RUF012 - not to be changed by anybody

    def __init__(self, url: str):
        super().__init__(url)
        self._lock = threading.Lock()
        self._read: Index | None = None

    @property
    def index(self) -> Index:
        """The index of this cache. Raises NotInCache, CorruptObject."""
        with self._lock:
            if self._read is None:
                try:
                    self._read = Index.from_parquet(super().get(INDEX), self.url)
                except MissingObject:
                    raise NotInCache(
                        f"{self.url} cannot be read as a cache",
                        found=f"no {INDEX} there: a web server lists nothing, so it says what there is",
                        expected="the address of a published cache, of the folder that has cache.json",
                        do="whoever publishes it: cache publish CACHE",
                    ) from None
            return self._read

    def get(self, path: str, most_bytes: int | None = None) -> bytes:
        published = self.index.find(path)
        if published is None:
            self._check_known(path)
            return super().get(path, most_bytes)
        data = super().get(path, most_bytes)
        if len(data) != published.size_bytes or digest(data) != published.digest:
            raise CorruptObject(
                f"{self.url}/{path} is not what was published",
                found=f"{len(data)} bytes, digest {digest(data)}",
                expected=f"{published.size_bytes} bytes, digest {published.digest}  ({INDEX})",
                do="run the same command again if it was published anew just now; "
                "else whoever publishes it: cache verify CACHE, then cache publish CACHE",
            )
        return data

    def get_version(self, path: str) -> tuple[bytes, str]:
        data, published = self.get(path), self.index.find(path)
        return data, "" if published is None else published.version

    def list(self, folder: str = "") -> Listing:
        return self.index.list(folder)

    def versions(self, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        return self.index.versions(folder, names)

    def walk(self, folder: str = "") -> Iterator[ObjectInfo]:
        return self.index.walk(folder)

    def put(self, path: str, data: bytes) -> None:
        self._refuse()

    def create(self, path: str, data: bytes) -> bool:
        self._refuse()

    def delete(self, path: str) -> None:
        self._refuse()

    def leftovers(self) -> Iterator[ObjectInfo]:
        return iter(())

    def now_s(self) -> float:
        self._refuse()

    def check_writable(self) -> None:
        self._refuse()

    def _check_known(self, path: str) -> None:
        """Raise MissingObject for what would be in the index if it were there: it has all but what commits name."""
        if not OF_A_GROUP.fullmatch(path):
            raise MissingObject(f"{self.url}/{path} is not there", do=ask_verify(self.url))

    def _refuse(self) -> NoReturn:
        raise BadRequest(
            f"{self.url} is read in place, over HTTP: nothing can be written to it",
            do=f"cache copy {self.url} FOLDER, and then work on FOLDER",
        )
