"""Parquet files by row groups: neighbouring pieces of work share one, and one that is larger is never held whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.datasets.base import LocalFile
from storage.errors import MissingSource

KEPT_ROW_GROUPS = 2  # decompressed, in each process
KEPT_BYTES = 256 * 2**20  # of a row group; one that is larger is read again for each shard
MOST_AT_ONCE = 1024  # rows, and bytes, that are decompressed at once of others
BATCH_BYTES = 32 * 2**20
BUFFER_BYTES = 2**16  # of a file: else the columns of a whole row group are read at once


@dataclass(frozen=True)
class ParquetTable:
    """One file.

    Attributes:
        path: where it is.
        schema: of its table.
        metadata: its footer.
    """

    path: Path
    schema: pa.Schema
    metadata: pq.FileMetaData

    @property
    def num_rows(self) -> int:
        """Return the rows of the file."""
        return int(self.metadata.num_rows)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Return the row behind each row group, which is decompressed whole."""
        groups = range(self.metadata.num_row_groups)
        return tuple(accumulate(self.metadata.row_group(number).num_rows for number in groups))

    @property
    def held_bytes(self) -> int:
        """Return what reading holds at once besides the samples."""
        groups = range(self.metadata.num_row_groups)
        largest = max((self.metadata.row_group(number).total_byte_size for number in groups), default=0)
        return KEPT_ROW_GROUPS * min(int(largest), KEPT_BYTES)

    def batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns of the rows [start, stop), those of a row group together or a few at a time."""
        first = 0
        for number, end in enumerate(self.ends):
            begin, until = max(start, first), min(stop, end)
            if begin < until:
                yield from self._of_group(number, begin - first, until - first, tuple(columns))
            first = end

    def _of_group(self, number: int, start: int, stop: int, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        group = self.metadata.row_group(number)
        if group.total_byte_size <= KEPT_BYTES:
            yield _read_group(self.path, LocalFile.of(self.path).version, number, columns).slice(start, stop - start)
            return
        # Arrow's 32-bit offsets end at 2 GiB, and a struct of more is not read at once at all.
        size = max(1, min(MOST_AT_ONCE, BATCH_BYTES * group.num_rows // group.total_byte_size))
        place = 0
        with reading(self.path), pq.ParquetFile(self.path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(size, row_groups=[number], columns=list(columns)):
                begin, end = max(0, start - place), min(batch.num_rows, stop - place)
                if begin < end:
                    yield pa.Table.from_batches([batch.slice(begin, end - begin)])
                place += batch.num_rows
                if place >= stop:
                    return


def open_parquet(path: Path) -> ParquetTable:
    """Return a file. Raises MissingSource: it cannot be read."""
    with reading(path):
        file = pq.ParquetFile(path)
        return ParquetTable(path, file.schema_arrow, file.metadata)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of what Arrow raises within the block which file it is of. Raises MissingSource."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise MissingSource(f"cannot read {path} as Parquet", found=str(error)) from None


# Neighbouring shards share a row group, and each piece of work would decompress it again; by version.
@lru_cache(maxsize=KEPT_ROW_GROUPS)
def _read_group(path: Path, version: str, number: int, columns: tuple[str, ...]) -> pa.Table:
    with reading(path):
        return pq.ParquetFile(path).read_row_group(number, columns=list(columns))
