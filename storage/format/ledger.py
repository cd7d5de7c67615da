"""All commits of a cache at a glance: rows, bytes and rates, without reading every commit each time.

Summaries are compacted into `ledger/00000007.parquet`. That file is a memory, never an authority: which shards exist
is always asked of the store, and a remembered summary counts only while the commit's version is still the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from storage.errors import MissingObject
from storage.format.objects import Objects
from storage.format.sealed import seal, unseal
from storage.format.shards import Commit, ShardKey, read_commits
from storage.format.stages import LEDGER, Stage

LEDGER_PATH = re.compile(rf"{LEDGER}/(\d{{8}})\.parquet")
SUMMARY_SCHEMA: dict[str, Any] = {
    "path": pl.String,
    "version": pl.String,
    "dataset": pl.String,
    "teacher": pl.String,
    "view": pl.String,
    "shard": pl.Int64,
    "rows": pl.Int64,
    "quarantined": pl.Int64,
    "bytes": pl.Int64,
    "seconds": pl.Float64,
    "finished": pl.String,
    "labelled": pl.Int64,
    "correct": pl.Int64,
    "nats": pl.Float64,
    "labels": pl.List(pl.Int64),
}


class Ledger:
    """A summary of every commit that was listed.

    Attributes:
        commits: one row per commit, columns of SUMMARY_SCHEMA.
        new: how many of them no ledger file held.
    """

    def __init__(self, objects: Objects, commits: pl.DataFrame, elsewhere: pl.DataFrame, new: int):
        self._objects = objects
        self._elsewhere = elsewhere
        self.commits = commits
        self.new = new

    @classmethod
    def load(
        cls, objects: Objects, listed: Mapping[Stage, Mapping[int, str]], check: Callable[[Commit], Commit]
    ) -> Ledger:
        """Return the ledger of some stages: one ledger file, and those of their commits that it does not hold.

        Args:
            objects: the cache.
            listed: stage → number of each shard → version of its commit; all stages of a dataset, or none.
            check: returns a commit that belongs to this cache, and refuses any other.
        """
        versions = {
            ShardKey(*stage, shard).commit_path: version
            for stage, shards in listed.items()
            for shard, version in shards.items()
        }
        there = pl.DataFrame(list(versions.items()), schema={"path": pl.String, "version": pl.String}, orient="row")
        latest = _read_latest(objects)
        remembered = there.join(latest, on=["path", "version"], how="inner")
        unread = there.join(remembered, on="path", how="anti")
        commits = [check(commit) for commit in read_commits(objects, unread["path"].to_list(), with_table=False)]
        fresh = pl.DataFrame(
            [_summary(c, versions[c.key.commit_path]) for c in commits], schema=SUMMARY_SCHEMA, orient="row"
        )
        elsewhere = latest.filter(~pl.col("dataset").is_in({dataset for dataset, _, _ in listed}))
        return cls(
            objects, pl.concat([remembered.select(*SUMMARY_SCHEMA), fresh]).sort("path"), elsewhere, len(commits)
        )

    def compact(self) -> None:
        """Write all summaries as the next ledger file, those of other datasets as they were, and drop older ones."""
        if not self.new:
            return
        old = _ledger_paths(self._objects)
        number = max((int(path.split("/")[1].split(".")[0]) for path in old), default=-1) + 1
        everything = pl.concat([self._elsewhere, self.commits]).sort("path")
        if self._objects.create(f"{LEDGER}/{number:08d}.parquet", seal(everything.to_arrow(), {})):
            # only now: at every moment there is one to be read
            for path in old:
                self._objects.delete(path)

    def of(self, dataset: str, teacher: str | None, view: str) -> pl.DataFrame:
        """Return the summaries of one stage."""
        # missing: the teacher of an ingest is null, which equals nothing
        return self.commits.filter(
            pl.col("dataset") == dataset, pl.col("teacher").eq_missing(pl.lit(teacher)), pl.col("view") == view
        )


def _ledger_paths(objects: Objects) -> list[str]:
    return [info.path for info in objects.list(LEDGER).objects if LEDGER_PATH.fullmatch(info.path)]


def _read_latest(objects: Objects) -> pl.DataFrame:
    for path in reversed(_ledger_paths(objects)):
        try:
            table = pl.DataFrame(pl.from_arrow(unseal(objects.get(path)).table))
            # one without a column of today is passed over: its commits are read again
            return table.select(*SUMMARY_SCHEMA).cast(SUMMARY_SCHEMA)  # type: ignore[arg-type]
        except (MissingObject, ValueError, pl.exceptions.PolarsError):
            continue  # compacted away since it was listed, or damaged: the commits themselves know better
    return pl.DataFrame(schema=SUMMARY_SCHEMA)


def _summary(commit: Commit, version: str) -> tuple[Any, ...]:
    return (
        commit.key.commit_path,
        version,
        commit.key.dataset,
        commit.key.teacher,
        commit.key.view,
        commit.key.shard,
        commit.stop - commit.start,
        commit.about.get("quarantined", 0),
        commit.size_bytes,
        commit.about.get("seconds", 0.0),
        commit.about.get("finished"),
        *(commit.about.get("answered", {}).get(name) for name in ("labelled", "correct", "nats")),
        commit.about.get("labels"),
    )
