"""Rows of a file that can only be read from its beginning, where neighbouring ones are asked for again and again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

KEPT_SHARDS = 3  # of rows that were read

T = TypeVar("T")


class Window(Generic[T]):
    """The rows of one file, read from its beginning once, as long as neighbouring rows are asked for."""

    def __init__(self, begin: Callable[[], Iterator[T]]):
        self._begin = begin
        self._rows, self._kept, self._read = begin(), deque[T](), 0

    def rows(self, position: int, rows: int) -> list[T]:
        """Return the rows [position, position + rows), or as many as there are."""
        if position < self._read - len(self._kept):
            self._rows, self._kept, self._read = self._begin(), deque[T](), 0
        # two pieces of work share a process, and the later may come first
        self._kept = deque(self._kept, maxlen=max(self._kept.maxlen or 0, KEPT_SHARDS * rows))
        for row in islice(self._rows, max(0, position + rows - self._read)):
            self._kept.append(row)
            self._read += 1
        first = self._read - len(self._kept)
        return list(islice(self._kept, position - first, position + rows - first))
