"""What chats and blocks of text have in common: files read in ranges, and tokens, each with what it is to predict.

L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Unreadable
from storage.datasets.packing import pack_rows
from storage.datasets.text.files import TokenisedFiles
from storage.datasets.text.reading.ranges import Ranges
from storage.datasets.text.reading.rows import cut
from storage.errors import BadRequest, MissingSource

PROBED = 100  # documents that are read before a cache is begun
PROBED_TOKENS = 2**18  # or fewer documents, of so many tokens


class TooLong(Unreadable):
    """A document that no row can hold, and that the job does not say how to cut.

    Args:
        reason: as of any that cannot be read.
        size: in tokens, or at least so many.
    """

    def __init__(self, reason: str, size: int):
        super().__init__(reason)
        self.size = size


class RangedFiles(TokenisedFiles):
    """Files that are planned in ranges of their bytes; a payload is (2, L) int32: ids, and what each is to predict."""

    def ranges_of(self, path: Path) -> Ranges[Any]:
        """Return the ranges of a file."""
        raise NotImplementedError

    def sizes(self, path: Path) -> Iterator[int | Unreadable]:
        """Yield the tokens of each document of the part of a file, or why there is none."""
        raise NotImplementedError

    @property
    def row_tokens(self) -> int:
        """L, at most."""
        raise NotImplementedError

    @property
    def refuses_long(self) -> bool:
        """Whether a document that no row can hold is set aside."""
        raise NotImplementedError

    def too_many(self, found: Sequence[TooLong], looked_at: int) -> BadRequest:
        """Return the refusal of a source of which more documents are too long than may be set aside."""
        raise NotImplementedError

    @property
    def by_ranges(self) -> bool:
        return True

    def rows_of(self, samples: Iterable[RawSample]) -> Iterable[RawSample]:
        return pack_rows(samples, self.row_tokens) if self.packs else samples

    def known_input(self) -> tuple[tuple[int, ...], str]:
        """Return shape and dtype of a row, after a look at the first documents.

        Raises:
            MissingSource: none of them can be read.
            BadRequest: more of them are too long than may be set aside. Here it costs nothing to change the job: how
                long ones are cut is part of what a dataset promises.
        """
        reasons: list[Unreadable] = []
        looked_at = num_tokens = 0
        for found in islice((each for path in self.paths() for each in self.sizes(path)), PROBED):
            looked_at += 1
            if isinstance(found, Unreadable):
                reasons.append(found)
            num_tokens += found.size if isinstance(found, TooLong) else found if isinstance(found, int) else 0
            if num_tokens > PROBED_TOKENS or (len(reasons) < looked_at and not self.refuses_long):
                break
        too_long = [reason for reason in reasons if isinstance(reason, TooLong)]
        if len(too_long) > self.max_quarantined * looked_at:
            raise self.too_many(too_long, looked_at)
        if reasons and len(reasons) == looked_at:
            raise MissingSource(
                f"dataset {self.name} has nothing readable among the first {looked_at} of its documents",
                found="\n".join(map(str, reasons[:3])),
                do="mend the data; docs/data.md says what a chat is, and what a text",
            )
        return (self.row_tokens,), "int32"

    def files(self) -> pl.DataFrame:
        rows = []
        for path in self.paths():
            known = self.recorded_rows(path)
            rows.append((self.file_of(path), *LocalFile.of(path), self.planned(path) if known is None else known))
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def planned(self, path: Path) -> int:
        """Return the length of the part of a file, in the measure of its ranges."""
        start, stop = self.part_of(path)
        return stop - start

    def range_digest(self, file: str, start: int, stop: int) -> str:
        return self.ranges_of(self.at(file)).digest(*self.places(file, start, stop))

    def open_end_digest(self, file: str, start: int, stop: int) -> str | None:
        ranges, begin = self.ranges_of(self.at(file)), self.part_of(self.at(file))[0]
        if not ranges.was_open(begin + stop):
            return None
        return ranges.digest(ranges.cut(begin + start), begin + stop)

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[0])

    def decode_labels(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[1])

    def part_of(self, path: Path) -> tuple[int, int]:
        """Return where the part of a file begins and ends, in the measure of its ranges."""
        return cut(self.ranges_of(path).size, self.part)

    def places(self, file: str, start: int, stop: int) -> tuple[int, int]:
        """Return the places between which a range of the part of a file lies."""
        path = self.at(file)
        ranges = self.ranges_of(path)
        begin = 0 if self.part[0] == 0 else self.part_of(path)[0]  # what is compressed is counted only if it must be
        return ranges.cut(begin + start), ranges.cut(begin + stop)

    def places_of(self, path: Path) -> tuple[int, int]:
        """Return the places between which the part of a file lies."""
        ranges, (begin, end) = self.ranges_of(path), self.part_of(path)
        return ranges.cut(begin), ranges.cut(end)
