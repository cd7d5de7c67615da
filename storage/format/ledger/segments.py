"""The ledger's files: each a segment, the summaries of some commits, created once, and deleted when another has them.

What is new is appended, and takes in what is not larger than itself. So a summary is written again only when what it
lies in has doubled: of N commits there are O(log N) segments, and O(N log N) bytes are written. A summary may lie in
two segments (a kill before the smaller was deleted; two builders at once) and one of a commit that is gone in any:
readers take the union, and of it only what is true of the commits that they have listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import polars as pl

from storage.errors import MissingObject
from storage.format.objects import ObjectInfo, Objects
from storage.format.sealed import seal, unseal
from storage.format.stages import LEDGER

SEGMENT_PATH = re.compile(rf"{LEDGER}/([0-9]{{8}})\.parquet")
STAGE = ("dataset", "teacher", "view")
FIGURES: dict[str, Any] = {
    "shard": pl.Int64,
    "version": pl.String,
    "rows": pl.Int64,
    "quarantined": pl.Int64,
    "bytes": pl.Int64,
    "seconds": pl.Float64,
    "labelled": pl.Int64,
    "correct": pl.Int64,
    "nats": pl.Float64,
    "never": pl.Int64,
    "two_classes": pl.Float64,
}
SUMMARY_SCHEMA: dict[str, Any] = {
    "path": pl.String,
    **dict.fromkeys(STAGE, pl.String),
    **FIGURES,
    "finished": pl.String,
    "labels": pl.List(pl.Int64),
}
COMMIT = (*STAGE, "shard", "version")  # what a summary is of
SMALL_BYTES = 2**18  # what is smaller is always taken in, so that a small cache has one segment
MOST_VALUES = 4_000_000  # of a segment: about 100 MB in memory while two are merged
MOST = 2**44  # rows, sites or bytes of a shard: sums over all shards are numbers still
CONSISTENT = (
    pl.all_horizontal(pl.col("dataset", "view", "shard", "version", "rows", "quarantined", "bytes").is_not_null())
    & pl.all_horizontal(pl.col("shard", "quarantined", "bytes") >= 0)
    & (pl.col("quarantined") <= pl.col("rows"))
    & pl.all_horizontal(pl.col("rows", "bytes") < MOST)
    & pl.col("seconds").is_between(0, float("inf"), closed="left")
    # of what is null a commit says nothing
    & pl.col("labelled").is_between(0, MOST).fill_null(True)
    & pl.col("correct").is_between(0, pl.col("labelled")).fill_null(True)
    & pl.col("nats").is_between(0, float("inf"), closed="left").fill_null(True)
    & pl.col("never").is_between(0, MOST).fill_null(True)
    & pl.col("two_classes").is_between(0, 1).fill_null(True)
)


class Segment(NamedTuple):
    """A ledger file, as it was read."""

    path: str
    data: bytes

    def summaries(self, columns: Collection[str] = tuple(SUMMARY_SCHEMA)) -> pl.DataFrame | None:
        """Return some columns of its summaries; None if it is damaged, of an older version, or contradicts itself."""
        try:
            names = {*columns, *STAGE, *FIGURES}
            table = pl.DataFrame(pl.from_arrow(unseal(self.data, columns=sorted(names)).table))
            table = table.select(pl.col(name).cast(SUMMARY_SCHEMA[name]) for name in SUMMARY_SCHEMA if name in names)
        except (ValueError, pl.exceptions.PolarsError):
            return None
        if not table.select(CONSISTENT.all()).item() or table.select(pl.struct(COMMIT).is_duplicated().any()).item():
            return None
        return table.select(*columns)

    def labels(self, places: pl.Series) -> pl.Series:
        """Return the counts of labels of some of its summaries, by their places; nulls where they cannot be read."""
        try:
            table = pl.DataFrame(pl.from_arrow(unseal(self.data, columns=["labels"]).table))
            return table["labels"].cast(SUMMARY_SCHEMA["labels"]).gather(places)
        except (ValueError, pl.exceptions.PolarsError):  # forged: whoever wrote it has sealed it
            return pl.Series("labels", [None] * len(places), SUMMARY_SCHEMA["labels"])


def read_segments(objects: Objects) -> list[Segment]:
    """Return all segments of a cache's ledger."""
    found: dict[str, Segment] = {}
    for _ in range(8):  # one that is gone was taken in by another, which is there to be listed
        gone = False
        for info in list_segments(objects):
            if info.path not in found:
                try:
                    found[info.path] = Segment(info.path, objects.get(info.path))
                except MissingObject:
                    gone = True
        if not gone:
            break
    return list(found.values())


def append(
    objects: Objects, fresh: pl.DataFrame, alive: Callable[[pl.DataFrame], pl.DataFrame] = lambda table: table
) -> None:
    """Create a segment of some summaries, and of all segments that are not larger; then delete those.

    Args:
        objects: the cache.
        fresh: columns of SUMMARY_SCHEMA.
        alive: returns the summaries of a segment that are still of use.
    """
    segments = sorted(list_segments(objects), key=lambda info: info.size_bytes)
    number = max((int(info.path[-16:-8]) for info in segments), default=-1) + 1
    parts = _parts(fresh.filter(CONSISTENT))  # what is not would make its whole segment none
    merged, taken = parts.pop(), list[str]()
    size_bytes = len(seal(merged.to_arrow(), {}))
    for info in segments:
        if info.size_bytes > max(size_bytes, SMALL_BYTES):
            break
        try:
            table = Segment(info.path, objects.get(info.path)).summaries()
        except MissingObject:  # taken in by another builder's
            continue
        if table is not None:
            table = alive(table)
            if _num_values(merged) + _num_values(table) > MOST_VALUES:
                break
            merged = pl.concat([merged, table])
            size_bytes += info.size_bytes
        taken.append(info.path)
    for part in [*parts, merged]:
        data = seal(part.unique(COMMIT, keep="first").sort(COMMIT).to_arrow(), {})
        while not objects.create(f"{LEDGER}/{number:08d}.parquet", data):
            number += 1  # another builder's
        number += 1
    for path in taken:  # only now: at every moment each summary is there to be read
        objects.delete(path)


def list_segments(objects: Objects) -> list[ObjectInfo]:
    """Return the ledger's files."""
    return [info for info in objects.list(LEDGER).objects if SEGMENT_PATH.fullmatch(info.path)]


def _parts(summaries: pl.DataFrame) -> list[pl.DataFrame]:
    """Return summaries in parts of as many values as a segment may have, one at least."""
    num_parts = -(-_num_values(summaries) // MOST_VALUES) or 1
    return list(summaries.iter_slices(-(-len(summaries) // num_parts) or 1)) or [summaries]


def _num_values(summaries: pl.DataFrame) -> int:
    return len(summaries) * len(SUMMARY_SCHEMA) + int(summaries["labels"].list.len().sum())
