"""The frozen plan of a dataset: which sample is which row, and where shards begin and end.

A dataset grows by segments, `<dataset>/plan/00000.parquet` and up, each created once. A segment lists extents: runs of
consecutive samples of one source file. Rows are numbered in the order of extents; shards cut a segment every
`rows_per_shard` rows and never span two, so no boundary ever moves.

Of a dataset in ranges of bytes (`DatasetSpec.byte_ranges`) all of this counts bytes. A shard's rows are numbered from
its first byte on, apart from those of all others: there are never more rows than bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.errors import CorruptObject, MissingObject
from storage.format.objects import Objects
from storage.format.sealed import seal, unseal

MOST_SHARDS = 2**25  # of a segment; each takes memory as soon as the plan is read
EXTENT_SCHEMA = {"file": pl.String, "size": pl.Int64, "version": pl.String, "position": pl.Int64, "rows": pl.Int64}


class ShardRows(NamedTuple):
    """A shard's rows, [start, stop)."""

    shard: int
    start: int
    stop: int


class PlannedShards(Sequence[ShardRows]):
    """All shards of a plan, of which there may be a million: made of where they are cut, when they are asked for.

    Args:
        cuts: row 0, then the row behind each shard, ascending.
    """

    def __init__(self, cuts: NDArray[np.int64]):
        self._cuts = cuts

    @property
    def starts(self) -> NDArray[np.int64]:
        """Return the first row of each shard, (S,)."""
        return self._cuts[:-1]

    def __len__(self) -> int:
        return len(self._cuts) - 1

    @overload
    def __getitem__(self, at: int) -> ShardRows: ...

    @overload
    def __getitem__(self, at: slice) -> list[ShardRows]: ...

    def __getitem__(self, at: int | slice) -> ShardRows | list[ShardRows]:
        if isinstance(at, slice):
            return [self[shard] for shard in range(len(self))[at]]
        shard = range(len(self))[at]
        return ShardRows(shard, int(self._cuts[shard]), int(self._cuts[shard + 1]))

    def __iter__(self) -> Iterator[ShardRows]:
        for first in range(0, len(self), 4096):  # a part at a time, as Python's own integers
            cuts = self._cuts[first : first + 4097].tolist()
            yield from map(ShardRows, range(first, len(self)), cuts, cuts[1:])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Extent(NamedTuple):
    """Samples [position, position + rows) of one source file.

    Attributes:
        size, version: of the file when it was last looked at, as the plan has recorded them.
        last: whether the file ended there when it was planned.
    """

    file: str
    position: int
    rows: int
    size: int
    version: str
    last: bool = True


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

    def to_parquet(self, path: str) -> bytes:
        """Return the segment's bytes, with its path in the cache, so that a swapped file is noticed."""
        table = self.extents.select(*EXTENT_SCHEMA).cast(EXTENT_SCHEMA).to_arrow()  # type: ignore[arg-type]
        return seal(table, {"path": path, "rows_per_shard": self.rows_per_shard})


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
        return (
            pl.concat([segment.extents for segment in self.segments])
            if self.segments
            else pl.DataFrame(schema=EXTENT_SCHEMA)
        )

    @cached_property
    def _looked_at(self) -> dict[str, tuple[int, str]]:
        """Return size and version of each file, of the last extent that names it."""
        return {
            file: (size, version) for file, size, version in self.extents.select("file", "size", "version").iter_rows()
        }

    def shards(self) -> PlannedShards:
        """Return every shard, ascending and contiguous from row 0."""
        cuts, start = [np.zeros(1, np.int64)], 0
        for segment in self.segments:
            stop = start + segment.num_rows
            cuts.append(np.arange(start + segment.rows_per_shard, stop, segment.rows_per_shard, dtype=np.int64))
            # the last shard of a segment may be short; one without rows has none
            cuts.append(np.array([stop] if stop > start else [], np.int64))
            start = stop
        return PlannedShards(np.concatenate(cuts))

    def slice(self, start: int, stop: int) -> list[Extent]:
        """Return the extents of rows [start, stop), in row order; parts of extents at the ends."""
        ends = pl.col("rows").cum_sum()
        looked_at = self._looked_at
        overlapping = (
            self.extents.filter(pl.col("rows") > 0)  # the others only record a look
            .with_columns(first=ends - pl.col("rows"), end=ends)
            .filter((pl.col("end") > start) & (pl.col("first") < stop))
        )
        return [
            Extent(
                file,
                position + max(start - first, 0),
                min(stop, end) - max(start, first),
                *looked_at[file],
                end <= stop,
            )
            for file, position, first, end in overlapping.select("file", "position", "first", "end").iter_rows()
        ]


def segment_path(dataset: str, number: int) -> str:
    """Return where segment `number` of a dataset lies."""
    return f"{dataset}/plan/{number:05d}.parquet"


def create_segment(objects: Objects, dataset: str, number: int, segment: Segment) -> bool:
    """Append segment `number` to a dataset's plan; return False if another builder has appended one of that number."""
    path = segment_path(dataset, number)
    return objects.create(path, segment.to_parquet(path))


def read_plan(objects: Objects, dataset: str) -> RowPlan:
    """Return the row plan of a dataset; one that was never planned has no segments.

    Raises:
        CorruptObject: a segment is damaged, or one before the last is missing: later rows would move down.
    """
    there = [info.path for info in objects.list(f"{dataset}/plan").objects if info.path.endswith(".parquet")]
    # as many as there are, from 0 on: what is not among them is lost
    paths = [segment_path(dataset, number) for number in range(len(there))]
    for path in paths:
        if path not in there:
            raise MissingObject(
                f"{objects.url}/{path} is not there", found=", ".join(there), do="restore it from a copy of the cache"
            )
    return RowPlan(tuple(_read_segment(objects, path) for path in paths))


def check_plan(objects: Objects, dataset: str, plan: RowPlan, committed: Collection[int]) -> None:
    """Check that a plan has every shard that is committed; a build would plan other rows under their numbers.

    Args:
        objects: the cache.
        dataset: whose plan.
        plan: read after the commits were listed, for it may have grown.
        committed: numbers of shards: the highest of each stage will do.

    Raises:
        MissingObject: its last segment is gone.
    """
    last, num_shards = max(committed, default=-1), len(plan.shards())
    if last >= num_shards:
        raise MissingObject(
            f"{objects.url}: a plan segment of {dataset} is missing",
            found=f"shard {last} is committed, {num_shards} shards are planned",
            expected=segment_path(dataset, len(plan.segments)),
            do="restore it from a copy of the cache",
        )


def _checked(segment: Segment) -> Segment:
    """Return a segment that can be. Raises ValueError: it has rows of no number, or more shards than any."""
    extents, cut = segment.extents, segment.rows_per_shard
    if type(cut) is not int or cut < 1:
        raise ValueError(f"rows_per_shard = {cut!r}")
    if any(column.null_count() for column in extents) or any(
        (extents[name] < 0).any() for name in ("size", "position", "rows")
    ):
        raise ValueError("an extent without a number of rows, or below 0")
    rows = sum(extents["rows"].to_list())  # of Python: a sum of int64 may wrap
    if rows >= 2**63 or rows / cut > MOST_SHARDS:
        raise ValueError(f"{rows} rows, {cut} of them a shard")
    return segment


def _read_segment(objects: Objects, path: str) -> Segment:
    data = objects.get(path)
    try:
        about, table = unseal(data)
        if about["path"] != path:
            raise ValueError(f"it is {about['path']}")
        extents = pl.DataFrame(pl.from_arrow(table)).select(*EXTENT_SCHEMA).cast(EXTENT_SCHEMA)  # type: ignore[arg-type]
        return _checked(Segment(extents, about["rows_per_shard"]))
    except Exception as error:  # whatever a file that only looks like a segment leads to
        raise CorruptObject(
            f"{objects.url}/{path} is not a whole plan segment",
            found=str(error),
            do="restore it from a copy of the cache",
        ) from None


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers as text, runs joined: "0, 3 to 7"."""
    runs = []
    # along a run, number less place is always the same
    for _, group in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}")
    return ", ".join(runs)
