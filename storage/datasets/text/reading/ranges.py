"""Files of documents in ranges: how long a file is, where it may be cut, and what lies between two cuts.

A range is of a measure of the file that is known without reading it: its bytes, of Parquet those that the columns have
before they are compressed. A *place* is where a cut may be: a byte, of Parquet a row.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, Protocol

import xxhash

from storage.datasets.base import Unreadable
from storage.datasets.text.reading.cutting import READ_BYTES, lines_between, next_cut, text_between
from storage.datasets.text.reading.opening import end_of, kind_of, open_bytes, size_of
from storage.datasets.text.reading.rows import (
    IN_COLUMNS,
    TOO_LONG,
    Columns,
    R,
    R_co,
    Reading,
    Row,
    column_batches,
    column_groups,
    json_row,
)
from storage.datasets.text.reading.where import Elsewhere

NUMBERED_BYTES = 16 * 2**20  # of a file whose lines are told by number; further down, by the byte they begin at
SAMPLED = 2**20  # of the measure, for each piece that a tokenizer is learned from
HEAD_BYTES = 2**20  # from which the length of a document is guessed


class Ranges(Protocol[R_co]):
    """One file. Places are ascending, and `cut` is a function of the file alone."""

    @property
    def size(self) -> int:
        """Return how long the file is."""

    def cut(self, at: int) -> int:
        """Return the first place at or after a point of the measure."""

    def documents(self, start: int, stop: int) -> Iterator[tuple[int, R_co | Unreadable]]:
        """Yield (place, document) between two places."""

    def where(self, place: int) -> str:
        """Return how a place is told."""

    def digest(self, start: int, stop: int) -> str:
        """Return the digest of what lies between two places."""

    def was_open(self, at: int) -> bool:
        """Return whether a line that ended with the file at a point of the measure has since got its line end there."""

    def mean_document(self) -> int:
        """Return about how long a document is, from the first of them."""


@dataclass(frozen=True)
class Text:
    """Running text, one document."""

    path: Path

    @property
    def size(self) -> int:
        return size_of(self.path)

    def cut(self, at: int) -> int:
        with open_bytes(self.path) as file:
            return next_cut(file, at, end_of(self.path), in_lines=True)

    def documents(self, start: int, stop: int) -> Iterator[tuple[int, Row | Unreadable]]:
        """Yield the pieces of the text, each with the byte before which it begins."""
        for piece in text_between(self.path, start, stop):
            yield start, Row((piece,))

    def where(self, place: int) -> str:
        return self.path.name

    def digest(self, start: int, stop: int) -> str:
        return _digest_bytes(self.path, start, stop)

    def was_open(self, at: int) -> bool:
        return False  # a line end is text as any other

    def mean_document(self) -> int:
        return self.size


@dataclass(frozen=True)
class JsonLines(Generic[R]):
    """A JSON object in each line."""

    path: Path
    reading: Reading[R]

    @property
    def size(self) -> int:
        return size_of(self.path)

    def cut(self, at: int) -> int:
        with open_bytes(self.path) as file:
            return next_cut(file, at, end_of(self.path), in_lines=False)

    def documents(self, start: int, stop: int) -> Iterator[tuple[int, R | Unreadable]]:
        for place, line in lines_between(self.path, start, stop):
            if line is None:
                yield place, Unreadable(TOO_LONG)
            elif not isinstance(row := json_row(line, self.reading), Elsewhere):
                yield place, row

    def where(self, place: int) -> str:
        if place > NUMBERED_BYTES:
            return f"{self.path.name} line at byte {place}"
        with open_bytes(self.path) as file:
            return f"{self.path.name} line {file.read(place).count(10) + 1}"

    def digest(self, start: int, stop: int) -> str:
        return _digest_bytes(self.path, start, stop)

    def was_open(self, at: int) -> bool:
        with open_bytes(self.path) as file:
            file.seek(at - 1)
            last, following = file.read(1), file.read(2)
        return last != b"\n" and following.startswith((b"\n", b"\r\n"))

    def mean_document(self) -> int:
        with open_bytes(self.path) as file:
            head = file.read(HEAD_BYTES)
        return max(1, len(head) // max(1, head.count(10)))


@dataclass(frozen=True)
class ColumnRows(Generic[R]):
    """A document in each row; the measure of a row group is spread evenly over its rows."""

    path: Path
    reading: Reading[R]

    @property
    def size(self) -> int:
        return sum(size for _, size in self._groups)

    def cut(self, at: int) -> int:
        place = 0
        for rows, size in self._groups:
            if at < size:
                return place + -(-max(0, at) * rows // size)  # rounded up: the first row that begins there or later
            place, at = place + rows, at - size
        return place

    def documents(self, start: int, stop: int) -> Iterator[tuple[int, R | Unreadable]]:
        yield from column_batches(self.path, self.reading, start, stop)

    def where(self, place: int) -> str:
        return f"{self.path.name} row {place}"

    def digest(self, start: int, stop: int) -> str:
        found = xxhash.xxh3_128()
        for _, row in self.documents(start, stop):
            # with their lengths: "ab", "c" are not "a", "bc"
            for text in [str(row)] if isinstance(row, Unreadable) else row.texts:
                data = text.encode()
                found.update(f"{len(data)}:".encode() + data)
        return found.hexdigest()

    def was_open(self, at: int) -> bool:
        return False

    def mean_document(self) -> int:
        return max(1, self.size // max(1, sum(rows for rows, _ in self._groups)))

    @cached_property
    def _groups(self) -> list[tuple[int, int]]:
        """Return rows and measure of each row group that has any."""
        return column_groups(self.path, self.reading)


def ranges_of(path: Path, columns: Columns | None) -> Ranges[Row]:
    """Return the ranges of a file: of its running text, or with `columns` of a table. Raises MissingSource."""
    return Text(path) if columns is None else table_of(path, columns)


def table_of(path: Path, reading: Reading[R]) -> Ranges[R]:
    """Return the ranges of a table, in columns or JSON lines. Raises MissingSource."""
    return ColumnRows(path, reading) if kind_of(path) in IN_COLUMNS else JsonLines(path, reading)


def sample_texts(parts: Sequence[tuple[Ranges[Row], int, int]], most: int, seed: int) -> Iterator[str]:
    """Yield texts to learn a tokenizer from: all, or of more than `most` of the measure pieces that are drawn.

    Args:
        parts: each a file, and where its part begins and ends.
        most: of the measure.
        seed: of what is drawn.
    """
    pieces = [
        (ranges, start, min(start + SAMPLED, stop))
        for ranges, begin, stop in parts
        for start in range(begin, stop, SAMPLED)
    ]
    if sum(stop - begin for _, begin, stop in parts) > most:
        drawn = random.Random(seed).sample(range(len(pieces)), max(1, most // SAMPLED))  # noqa: S311 - no secret
        pieces = [pieces[number] for number in sorted(drawn)]
    for ranges, start, stop in pieces:
        for _, row in ranges.documents(ranges.cut(start), ranges.cut(stop)):
            if isinstance(row, Row):
                yield from reversed(row.texts)  # a prompt comes before its document


def _digest_bytes(path: Path, start: int, stop: int) -> str:
    found = xxhash.xxh3_128()
    with open_bytes(path) as file:
        file.seek(start)
        while start < stop and (data := file.read(min(READ_BYTES, stop - start))):
            found.update(data)
            start += len(data)
    return found.hexdigest()
