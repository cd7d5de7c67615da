"""Which rows are new, where shards end, what is missing: integers and tables only, no I/O.

A dataset only ever grows: recorded rows keep their numbers and shards their boundaries, new samples go to the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from storage.digests import sample_keys
from storage.format.rows import EXTENT_SCHEMA, RowPlan, Segment, ShardRows

TARGET_SHARD_BYTES = 256 * 2**20
TARGET_TARGETS_BYTES = 128 * 2**20  # of a shard whose rows have many sites, if all have a label; a worker holds six
TARGET_SHARD_SITES = 250_000  # where rows have many
MIN_SHARD_SITES = 2**14
MANY_SHARDS = 64  # enough for most workers to have some
TARGET_SHARD_ROWS = 2048  # about 30 s of a 300 MFLOP teacher on one core; large enough to hide 3 ms of scheduling


class Growth(NamedTuple):
    """How a source differs from what is recorded of it.

    Attributes:
        segment: what to append to the plan, or None if nothing changed.
        touched: files whose recorded rows must be compared with the source, since size or version changed.
        gone: files that are missing, or hold fewer rows than recorded.
    """

    segment: Segment | None
    touched: tuple[str, ...]
    gone: tuple[str, ...]


def grow(recorded: RowPlan, files: pl.DataFrame, rows_per_shard: int, may_go: Collection[str] = ()) -> Growth:
    """Return what a listing of a source's files adds to its recorded plan.

    Args:
        recorded: the plan in the cache; without segments for a new dataset.
        files: `file`, `size`, `version`, `rows`, in row order.
        rows_per_shard: the cut of the new segment, if there is one.
        may_go: files of which no sample could ever be read; their rows stay in the plan.

    A file whose five rows are recorded has grown to eight, and another is new:

    >>> extents = pl.DataFrame([("a", 90, "v1", 0, 5)], EXTENT_SCHEMA, orient="row")
    >>> files = pl.DataFrame({"file": ["a", "b"], "size": [140, 30], "version": ["v2", "v1"], "rows": [8, 2]})
    >>> growth = grow(RowPlan((Segment(extents, 4),)), files, rows_per_shard=4)
    >>> growth.segment.extents.rows()  # file, size, version, position, rows: 5 to 7 of a, then both of b
    [('a', 140, 'v2', 5, 3), ('b', 30, 'v1', 0, 2)]
    >>> growth.touched, growth.gone  # the five rows of a are to be compared with what was ingested
    (('a',), ())
    """
    known = recorded.extents.group_by("file", maintain_order=True).agg(
        known_rows=pl.col("rows").sum(), known_size=pl.col("size").last(), known_version=pl.col("version").last()
    )
    # Left, in the order of `files`: rows are numbered in that order.
    both = files.join(known, on="file", how="left", maintain_order="left").with_columns(
        pl.col("known_rows").fill_null(0)
    )
    gone = [
        *(file for file in known.join(files, on="file", how="anti")["file"] if file not in may_go),
        *both.filter(pl.col("rows") < pl.col("known_rows"))["file"],
    ]
    differs = (pl.col("size") != pl.col("known_size")) | (pl.col("version") != pl.col("known_version"))
    touched = both.filter((pl.col("known_rows") > 0) & differs)["file"].to_list()
    # A file that was touched and holds no more rows than before is recorded too, with none: it is compared but once.
    added = both.filter((pl.col("rows") > pl.col("known_rows")) | differs.fill_null(False)).select(
        "file", "size", "version", position="known_rows", rows=pl.col("rows") - pl.col("known_rows")
    )
    segment = Segment(added.cast(EXTENT_SCHEMA), rows_per_shard) if len(added) and not gone else None  # type: ignore[arg-type]
    return Growth(segment, tuple(touched), tuple(gone))


def in_no_order(segment: Segment, runs: Callable[[str, int, int], list[int]]) -> Segment:
    """Return a segment whose rows lie in an order that has nothing to do with that of their files.

    It is that of hashes of where the rows are in the source, so that two builders plan the same.

    Args:
        segment: in the order of its files.
        runs: of a file, a position and a number of rows, returns how many of them are to stay together each time.

    >>> files = pl.DataFrame([("a", 90, "v1", 0, 3), ("b", 30, "v1", 0, 2)], EXTENT_SCHEMA, orient="row")
    >>> mixed = in_no_order(Segment(files, 4), lambda file, position, rows: [1] * rows)
    >>> mixed.extents.select("file", "position", "rows").rows()
    [('b', 0, 1), ('a', 0, 1), ('b', 1, 1), ('a', 2, 1), ('a', 1, 1)]
    """
    extents = [
        (file, size, version, start, count)
        for file, size, version, position, rows in segment.extents.select(*EXTENT_SCHEMA).iter_rows()
        for start, count in _placed(position, runs(file, position, rows) if rows else [0])
    ]
    keys = sample_keys([f"{file}:{start}" for file, _, _, start, _ in extents])
    shuffled = [extents[place] for place in np.argsort(keys, kind="stable")]
    return Segment(pl.DataFrame(shuffled, EXTENT_SCHEMA, orient="row"), segment.rows_per_shard)


def _placed(position: int, counts: list[int]) -> Iterator[tuple[int, int]]:
    """Yield where each of some runs begins, and how many rows it has."""
    for count in counts:
        yield position, count
        position += count


def default_rows_per_shard(input_shape: Sequence[int], input_dtype: str, *, num_classes: int = 0) -> int:
    """Return the rows of a shard whose rows are their only sites: TARGET_SHARD_ROWS, or fewer.

    There are fewer where inputs would pass TARGET_SHARD_BYTES; and of few classes, where logits in 16 bits would. Of
    many nobody stores all logits, and a shard has MIN_SHARD_SITES.

    >>> default_rows_per_shard((3, 32, 32), "uint8", num_classes=10)  # 3 kB a row: as many rows as a shard may have
    2048
    >>> default_rows_per_shard((3, 512, 512), "float32", num_classes=10)  # 3 MiB a row, and 256 MiB a shard
    85
    """
    row_bytes = math.prod(input_shape) * np.dtype(input_dtype).itemsize
    sites = max(MIN_SHARD_SITES, TARGET_SHARD_BYTES // (2 * max(1, num_classes)))
    return max(1, min(TARGET_SHARD_ROWS, TARGET_SHARD_BYTES // max(1, row_bytes), sites))


def default_sites_per_shard(num_sites: int, site_bytes: int) -> int:
    """Return the sites of a shard where a row has many: TARGET_SHARD_SITES, or fewer.

    A shard is four objects: of 10⁹ tokens there are 16,000 (docs/adr/0019). There are fewer sites where a dataset is so
    small that there would be less than MANY_SHARDS to share among workers, and where targets are so large that a shard
    would pass TARGET_TARGETS_BYTES.

    Args:
        num_sites: of the whole dataset, or about as many.
        site_bytes: of the largest targets that a job asks for of a site, in memory; 0: of none.

    >>> default_sites_per_shard(10**9, 400)  # 64 kept classes and their statistics
    250000
    >>> default_sites_per_shard(10**7, 400), default_sites_per_shard(10**5, 400)
    (156250, 16384)
    >>> default_sites_per_shard(10**9, 2 * 128_256)  # all logits in 16 bits
    523
    """
    wanted = min(TARGET_SHARD_SITES, max(MIN_SHARD_SITES, num_sites // MANY_SHARDS))
    return max(1, min(wanted, TARGET_TARGETS_BYTES // max(1, site_bytes)))


def missing(shards: Sequence[ShardRows], committed: set[int], part: tuple[int, int] = (0, 1)) -> Sequence[ShardRows]:
    """Return the shards without a commit that fall to one part of a build.

    Args:
        shards: all of a dataset.
        committed: numbers of those that are whole.
        part: (i, n): this process is number i of n and takes every n-th shard.

    >>> shards = [ShardRows(0, 0, 4), ShardRows(1, 4, 8), ShardRows(2, 8, 12), ShardRows(3, 12, 14)]
    >>> [shard.shard for shard in missing(shards, {2})], [shard.shard for shard in missing(shards, {2}, (0, 2))]
    ([0, 1, 3], [0])
    """
    i, n = part
    if n == 1 and not committed:
        return shards
    return [shard for shard in shards if shard.shard not in committed and shard.shard % n == i]
