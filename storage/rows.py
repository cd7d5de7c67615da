"""The frozen plan of a dataset: which sample is which row, and where shards begin and end.

A dataset grows by segments, `<dataset>/plan/00000.parquet` and up, each created once. A segment lists extents: runs of
consecutive samples of one source file. Rows are numbered in the order of extents; shards cut a segment every
`rows_per_shard` rows and never span two, so no boundary ever moves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from storage.errors import CorruptObject
from storage.objects import Objects

EXTENT_SCHEMA = {"file": pl.String, "size": pl.Int64, "version": pl.String, "position": pl.Int64, "rows": pl.Int64}


class ShardRows(NamedTuple):
    """A shard's rows, [start, stop)."""

    shard: int
    start: int
    stop: int


class Extent(NamedTuple):
    """Samples [position, position + rows) of one source file."""

    file: str
    position: int
    rows: int


@dataclass(frozen=True)
class Segment:
    """One growth of a dataset.

    Attributes:
        extents: columns of EXTENT_SCHEMA. `size` and `version` are the file's at the time; an extent of no rows only
            records that a file was touched and found unchanged.
        rows_per_shard: the cut.
    """

    extents: pl.DataFrame
    rows_per_shard: int

    @property
    def num_rows(self) -> int:
        return int(self.extents["rows"].sum())

    def to_parquet(self) -> bytes:
        sink = BytesIO()
        table = self.extents.select(EXTENT_SCHEMA).cast(EXTENT_SCHEMA).to_arrow()  # type: ignore[arg-type]
        metadata = json.dumps({"rows_per_shard": self.rows_per_shard})
        pq.write_table(table.replace_schema_metadata({"stillroom": metadata}), sink, write_page_checksum=True)
        return sink.getvalue()


@dataclass(frozen=True)
class RowPlan:
    """All segments of one dataset, in order."""

    segments: tuple[Segment, ...]

    @property
    def num_rows(self) -> int:
        return sum(segment.num_rows for segment in self.segments)

    @property
    def extents(self) -> pl.DataFrame:
        """All extents in row order, EXTENT_SCHEMA."""
        return pl.concat([segment.extents for segment in self.segments]) if self.segments else pl.DataFrame(schema=EXTENT_SCHEMA)

    def shards(self) -> list[ShardRows]:
        """Return every shard, ascending and contiguous from row 0."""
        shards: list[ShardRows] = []
        start = 0
        for segment in self.segments:
            stop = start + segment.num_rows
            cuts = [*range(start, stop, segment.rows_per_shard), stop]
            shards += [ShardRows(len(shards) + i, a, b) for i, (a, b) in enumerate(pairwise(cuts))]
            start = stop
        return shards

    def slice(self, start: int, stop: int) -> list[Extent]:
        """Return the extents of rows [start, stop), in row order; parts of extents at the ends."""
        ends = pl.col("rows").cum_sum()
        overlapping = (
            self.extents.filter(pl.col("rows") > 0)
            .with_columns(first=ends - pl.col("rows"), end=ends)
            .filter((pl.col("end") > start) & (pl.col("first") < stop))
        )
        return [
            Extent(file, position + max(start - first, 0), min(stop, end) - max(start, first))
            for file, position, first, end in overlapping.select("file", "position", "first", "end").iter_rows()
        ]


def segment_path(dataset: str, number: int) -> str:
    """Return where segment `number` of a dataset lies."""
    return f"{dataset}/plan/{number:05d}.parquet"


def read_plan(objects: Objects, dataset: str) -> RowPlan:
    """Return the row plan of a dataset; one that was never planned has no segments."""
    infos = objects.list(f"{dataset}/plan").objects
    return RowPlan(tuple(_read_segment(objects, info.path) for info in infos if info.path.endswith(".parquet")))


def _read_segment(objects: Objects, path: str) -> Segment:
    data = objects.get(path)
    try:
        table = pq.read_table(BytesIO(data), page_checksum_verification=True)
        rows_per_shard = int(json.loads(table.schema.metadata[b"stillroom"])["rows_per_shard"])
        extents = pl.DataFrame(pl.from_arrow(table)).select(EXTENT_SCHEMA).cast(EXTENT_SCHEMA)  # type: ignore[arg-type]
    except Exception as error:  # pyarrow raises many kinds on damaged bytes
        raise CorruptObject(f"{objects.url}/{path} is not a plan segment", found=str(error)) from None
    return Segment(extents, rows_per_shard)
