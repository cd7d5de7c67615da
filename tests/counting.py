"""A store that counts: what a command asks of an object store, one request a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from storage.format.objects import Listing, ObjectInfo, Objects, Span


class Counting:
    """Objects, and every request that was made of them.

    Attributes:
        requests: (verb, path), in order; a `walk` is one, whatever lies below.
    """

    def __init__(self, objects: Objects, requests: list[tuple[str, str]] | None = None):
        self._objects = objects
        self.url = objects.url
        self.requests = [] if requests is None else requests

    @property
    def latency_s(self) -> float:
        return self._objects.latency_s

    def get(self, path: str, most_bytes: int | None = None) -> bytes:
        self.requests.append(("get", path))
        return self._objects.get(path, most_bytes)

    def get_version(self, path: str) -> tuple[bytes, str]:
        self.requests.append(("get", path))
        return self._objects.get_version(path)

    def get_ranges(self, path: str, spans: Sequence[Span]) -> list[bytes]:
        self.requests += [("get", path)] * len(spans)
        return self._objects.get_ranges(path, spans)

    def put(self, path: str, data: bytes) -> None:
        self.requests.append(("put", path))
        self._objects.put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        self.requests.append(("create", path))
        return self._objects.create(path, data)

    def list(self, folder: str = "") -> Listing:
        self.requests.append(("list", folder))
        return self._objects.list(folder)

    def versions(self, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        self.requests.append(("list", folder))
        return self._objects.versions(folder, names)

    def walk(self, folder: str = "") -> Iterator[ObjectInfo]:
        self.requests.append(("walk", folder))
        return self._objects.walk(folder)

    def delete(self, path: str) -> None:
        self.requests.append(("delete", path))
        self._objects.delete(path)

    def leftovers(self) -> Iterator[ObjectInfo]:
        return self._objects.leftovers()

    def now_s(self) -> float:
        self.requests.append(("put", ""))
        return self._objects.now_s()

    def check_writable(self) -> None:
        self._objects.check_writable()
