"""Summaries of commits: those that segments hold are remembered, the others are read.

They are a memory, never an authority: which shards exist is always asked of the store, and a remembered summary counts
only while the commit's version is still the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import polars as pl

from storage.errors import MissingObject
from storage.format.ledger.segments import (
    COMMIT,
    FIGURES,
    MOST,
    STAGE,
    SUMMARY_SCHEMA,
    Segment,
    append,
    list_segments,
    read_segments,
)
from storage.format.objects import ObjectInfo, Objects, num_at_once
from storage.format.shards import Commit, Committed, ShardKey
from storage.format.stages import Stage

READ_AT_ONCE = 4096  # commits, as Python objects; their summaries are columns
KEPT = tuple(name for name in FIGURES if name != "version")  # which whoever has listed the commits knows
Check = Callable[[Commit], Commit]


class Ledger:
    """A summary of every commit that was listed.

    Attributes:
        stages: the summaries of each, by shard: columns of KEPT.
        new: how many of them no segment held.
    """

    def __init__(self, objects: Objects, listed: Mapping[Stage, Committed], check: Check):
        self._objects, self._listed = objects, listed
        self.stages: dict[Stage, pl.DataFrame] = {}
        self._labels: dict[str, list[int]] = {}
        segments = read_segments(objects)
        told, self._useless = _told(segments, listed)
        fresh = []
        for stage, shards in listed.items():
            remembered = _alike(pl.concat([_no_summaries(), *told.pop(stage, ())]))
            unread = shards.table.join(remembered, on="shard", how="anti")
            read = _summaries(objects, _paths(stage, unread), check)
            if stage[1] is None:
                self._labels[stage[0]] = _sum_labels([*_remembered_labels(segments, remembered), read["labels"]])
            table = pl.concat([remembered.select(KEPT), read.select(KEPT)])
            del remembered, unread  # of a million shards each of these tables is a tenth of a gigabyte
            self.stages[stage] = table if table["shard"].is_sorted() else table.sort("shard")
            fresh.append(read)
        self._fresh = pl.concat([pl.DataFrame(schema=SUMMARY_SCHEMA), *fresh])
        self.new = len(self._fresh)

    @classmethod
    def load(cls, objects: Objects, listed: Mapping[Stage, Committed], check: Check) -> Ledger:
        """Return the ledger of some stages: what segments hold of their commits, and the others, which are read.

        Args:
            objects: the cache.
            listed: stage → its commits; all stages of a dataset, or none.
            check: returns a commit that belongs to this cache, and refuses any other.
        """
        return cls(objects, listed, check)

    def compact(self) -> None:
        """Append what no segment held, without what is of no commit any more in those that it takes in."""
        if self.new:
            append(self._objects, self._fresh, self._alive)
        for path in self._useless:
            self._objects.delete(path)

    def of(self, dataset: str, teacher: str | None, view: str) -> pl.DataFrame:
        """Return the summaries of one stage, by shard: columns of KEPT."""
        return self.stages.get((dataset, teacher, view), _no_summaries().select(KEPT))

    def labels(self, dataset: str) -> list[int]:
        """Return how many labels there are of each class, by number; nothing where a shard does not count them."""
        return self._labels.get(dataset, [])

    def _alive(self, table: pl.DataFrame) -> pl.DataFrame:
        """Return the summaries of a segment that are of a listed commit, or of another dataset."""
        elsewhere = table.filter(~pl.col("dataset").is_in({dataset for dataset, _, _ in self._listed}))
        return pl.concat([elsewhere, _listed_in(table, self._listed)])


def remember(objects: Objects, keys: Iterable[ShardKey], check: Check) -> None:
    """Append the summaries of commits that were just written, without a look at any other."""
    append(objects, _summaries(objects, ((key.commit_path, None) for key in keys), check))


def spare_segments(objects: Objects, listed: Mapping[Stage, Committed]) -> list[ObjectInfo]:
    """Return the ledger's files that nobody needs: as if empty, or each summary is in another, or of no commit.

    Args:
        objects: the cache.
        listed: every stage of it, and its commits, listed before.
    """
    columns = [*STAGE, *FIGURES]
    infos = sorted(
        list_segments(objects), key=lambda info: info.size_bytes
    )  # what lies in two is dropped from the smaller
    data = {segment.path: segment for segment in read_segments(objects)}
    told: dict[str, pl.DataFrame] = {}
    for info in infos:
        table = data[info.path].summaries(columns) if info.path in data else None
        told[info.path] = (
            pl.DataFrame(schema={name: SUMMARY_SCHEMA[name] for name in columns}) if table is None else table
        )
    told = {path: _listed_in(table, listed) for path, table in told.items()}
    spare = []
    for info in infos:
        others = [table for path, table in told.items() if path != info.path]
        own = told[info.path]
        if others:
            own = own.join(pl.concat(others), on=columns, how="anti", nulls_equal=True)
        if own.is_empty():
            spare.append(info)
            del told[info.path]
    return spare


def untrue_segments(objects: Objects, commits: Iterable[tuple[Commit, str]]) -> list[str]:
    """Return the ledger's files that say of commits what these do not say: somebody has forged them.

    Damaged ones are not among them: they are no ledger to anybody.

    Args:
        objects: the cache.
        commits: each with the version that was listed.
    """
    true = _comparable(pl.DataFrame([_summary(*each) for each in commits], schema=SUMMARY_SCHEMA, orient="row"))
    untrue = []
    for segment in read_segments(objects):
        table = segment.summaries()
        if table is not None:
            told = _comparable(table).join(true, on=COMMIT, how="semi", nulls_equal=True)
            if len(told.join(true, on=told.columns, how="anti", nulls_equal=True)):
                untrue.append(segment.path)
    return untrue


def _comparable(table: pl.DataFrame) -> pl.DataFrame:
    """Return summaries whose lists are texts: those can be joined."""
    return table.with_columns(pl.col("labels").cast(pl.List(pl.String)).list.join(" "))


def _listed_in(table: pl.DataFrame, listed: Mapping[Stage, Committed]) -> pl.DataFrame:
    """Return the summaries that are of a listed commit."""
    on = ["shard", "version"]
    here = [_of(table, stage).join(shards.table, on=on, how="semi") for stage, shards in listed.items()]
    return pl.concat([table.clear(), *here])


def _told(
    segments: list[Segment], listed: Mapping[Stage, Committed]
) -> tuple[dict[Stage, list[pl.DataFrame]], list[str]]:
    """Return what the segments say of the commits that were listed, and the segments that are of no use to anybody.

    A segment at a time is in memory, and of it what is true stays.

    Returns:
        Of each stage some tables, each summary with its segment and its place there; and paths.
    """
    told: dict[Stage, list[pl.DataFrame]] = {stage: [] for stage in listed}
    useless = []
    for number, segment in enumerate(segments):
        table = segment.summaries((*STAGE, *FIGURES))
        if table is None:
            useless.append(segment.path)
            continue
        placed = table.with_columns(
            segment=pl.lit(number, pl.Int32), place=pl.int_range(len(table), dtype=pl.Int32)
        ).partition_by(*STAGE, as_dict=True, include_key=False)
        del table
        for stage, shards in listed.items():
            own = placed.pop(stage, None)
            if own is not None:
                told[stage].append(own.join(shards.table, on=["shard", "version"], how="semi").drop("version"))
    return told, useless


def _no_summaries() -> pl.DataFrame:
    return pl.DataFrame(schema={name: FIGURES[name] for name in KEPT} | {"segment": pl.Int32, "place": pl.Int32})


def _of(table: pl.DataFrame, stage: Stage) -> pl.DataFrame:
    # missing: the teacher of an ingest is null, which equals nothing
    is_of = (pl.col(name).eq_missing(pl.lit(value, pl.String)) for name, value in zip(STAGE, stage, strict=True))
    return table.filter(pl.all_horizontal(is_of))


def _alike(remembered: pl.DataFrame) -> pl.DataFrame:
    """Return each summary once; of a commit that two segments tell differently of, none: it is read again."""
    if not remembered["shard"].is_duplicated().any():
        return remembered
    once = remembered.unique(KEPT, keep="first", maintain_order=True)
    return once.filter(~pl.col("shard").is_duplicated())


def _paths(stage: Stage, unread: pl.DataFrame) -> Iterator[tuple[str, str]]:
    for shard, version in unread.select("shard", "version").iter_rows():
        yield ShardKey(*stage, shard).commit_path, version


def _summaries(objects: Objects, commits: Iterable[tuple[str, str | None]], check: Check) -> pl.DataFrame:
    """Return summaries of the commits at some paths, as SUMMARY_SCHEMA, but for those that are gone.

    Args:
        objects: the cache.
        commits: path, and the version that was listed; None for that of the bytes themselves.
        check: as of `Ledger.load`.
    """

    def read(commit: tuple[str, str | None]) -> tuple[Any, ...] | None:
        path, listed = commit
        try:
            data, version = objects.get_version(path) if listed is None else (objects.get(path), listed)
        except MissingObject:
            return None
        return _summary(check(Commit.from_parquet(data, path, with_table=False)), version)

    tables = [pl.DataFrame(schema=SUMMARY_SCHEMA)]
    with ThreadPoolExecutor(num_at_once(objects)) as pool:
        left = iter(commits)
        while some := list(islice(left, READ_AT_ONCE)):
            found = [summary for summary in pool.map(read, some) if summary is not None]
            tables.append(pl.DataFrame(found, schema=SUMMARY_SCHEMA, orient="row"))
    return pl.concat(tables)


def _remembered_labels(segments: list[Segment], remembered: pl.DataFrame) -> Iterator[pl.Series]:
    """Yield the counts of labels of some summaries: a segment at a time, for they may be a thousand numbers each."""
    for (number,), table in remembered.group_by(["segment"]):
        yield segments[int(str(number))].labels(table["place"])


def _sum_labels(parts: Iterable[pl.Series]) -> list[int]:
    """Return how many labels there are of each class; nothing if one has no counts: a part would pass for all."""
    sums: list[np.ndarray] = []
    for counts in parts:
        lengths = counts.list.len().unique()
        each = counts.explode()
        if counts.null_count() or len(lengths) > 1 or not each.is_between(0, MOST).all(ignore_nulls=False):
            return []
        if len(lengths):
            sums.append(each.to_numpy().reshape(len(counts), lengths[0]).sum(axis=0))  # (shards, C) to (C,)
    if len({len(each) for each in sums}) > 1:
        return []
    return [int(count) for count in sum(sums[1:], sums[0])] if sums else []


def _summary(commit: Commit, version: str) -> tuple[Any, ...]:
    said = {
        "path": commit.key.commit_path,
        **commit.key._asdict(),
        "version": version,
        "rows": commit.stop - commit.start,
        "quarantined": commit.about.get("quarantined", 0),
        "bytes": commit.size_bytes,
        "seconds": commit.about.get("seconds", 0.0),
        "finished": commit.about.get("finished"),
        **{name: commit.about.get("answered", {}).get(name) for name in ("labelled", "correct", "nats", "never")},
        "two_classes": two_classes(commit.about.get("labels") or []),
        "labels": commit.about.get("labels"),
    }
    return tuple(said[name] for name in SUMMARY_SCHEMA)


def two_classes(labels: Sequence[int]) -> float | None:
    """Return the share of pairs of rows that are of two classes, from how many rows there are of each; None: no pair.

    >>> two_classes([2, 2])  # of six pairs, two are of one class
    0.6666666666666667
    """
    rows = sum(labels)
    pairs = rows * (rows - 1)
    return 1 - sum(count * (count - 1) for count in labels) / pairs if pairs else None
