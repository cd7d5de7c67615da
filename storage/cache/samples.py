"""The per-sample tables of a cache: what its commits say of each row, as one table of a dataset.

Commits are read some at a time and become columns: what is held of a million of them is what is asked of their rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from storage.cache.catalogue import Catalogue
from storage.cache.repeats import Repeats, find_repeats
from storage.errors import IncompleteCache, TryAgain
from storage.format.shards import Commit, stage_folder
from storage.format.stages import Stage
from storage.tasks.base import LABELLED
from storage.views import PLAIN

Columns = tuple[str, ...] | None  # None: all
UNREADABLE = ("sample_id", "error")
CONTENT = ("sample_id", "error", "split", "payload_digest", "label_digest")
TEACHER_COLUMNS = ("top", "top_probability", "entropy", "label_log_probability")


class Samples:
    """The per-sample tables of what a catalogue lists. While this lives, what was read of commits is not read again."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        self._tables: dict[tuple[Stage, Columns], pl.DataFrame] = {}
        self._shards: dict[Stage, pl.Series] = {}  # that were read: one without a row is not in a table

    def of(self, dataset: str, teachers: Iterable[str] = (), columns: Collection[str] | None = None) -> pl.DataFrame:
        """Return one row per readable sample of the committed shards, in row order.

        Args:
            dataset: its name.
            teachers: whose per-sample columns to add, `<teacher>_top`, `_top_probability`, `_entropy` (nats) and
                `_label_log_probability` (of the row's own label); null where the teacher's shard is not committed.
                Of tokens they are means over the labelled positions, of which there are `_labelled`, if that was kept.
                They are of the plain inputs if the teacher was asked about them, else of view-000.
            columns: those that are wanted beside `row` and `shard`, as far as there are such; None for all.

        Returns:
            `row` int64, `shard` int64, `sample_id` string, `label` int64 (null: unlabelled), `split` string,
            `payload_digest` and `label_digest` string (of format 2, `digest` of both), columns of the source, then
            those of the teachers.

        Raises:
            IncompleteCache: nothing of the dataset, or of a teacher, is committed.
            TryAgain: a shard was dropped after the catalogue was read.
        """
        told = {teacher: {name: f"{teacher}_{name}" for name in (*TEACHER_COLUMNS, LABELLED)} for teacher in teachers}
        wanted: Columns = None
        if columns is not None:
            wanted = tuple(sorted({"error", *columns}.difference(*(names.values() for names in told.values()))))
        samples = self._whole((dataset, None, PLAIN), wanted).filter(pl.col("error").is_null()).drop("error")
        for teacher, all_names in told.items():
            names = {name: column for name, column in all_names.items() if columns is None or column in columns}
            if not names:
                continue
            # of a teacher that has answered nothing `_whole` says so
            view = next(iter(self.catalogue.view_names(dataset, teacher)), PLAIN)
            table = self._whole((dataset, teacher, view), tuple(names))
            # not every task counts what is labelled
            found = {name: column for name, column in names.items() if name in table.columns}
            # left: rows whose shard it has not answered stay
            answers = table.select("row", *found).rename(found)
            samples = samples.join(answers, on="row", how="left", maintain_order="left")
        return samples

    def counted(self, dataset: str) -> pl.DataFrame:
        """Return `shard` of each readable sample, as the ledger tells: no commit is read that it holds.

        Raises:
            TryAgain: a shard was dropped after the catalogue was read.
        """
        stage = (dataset, None, PLAIN)
        shards = self.catalogue.ledger([stage]).of(*stage)
        self._check_whole(stage, shards["shard"])
        readable = shards.select(pl.col("shard").repeat_by(pl.col("rows") - pl.col("quarantined")))
        return readable.explode("shard").drop_nulls()

    def quarantined(self, dataset: str, shards: Sequence[int] | None = None) -> pl.DataFrame:
        """Return `row`, `sample_id` and `error` of the samples that could not be read, in row order.

        Args:
            dataset: its name.
            shards: numbers of those that have some, if that is known; None looks at all.
        """
        stage = (dataset, None, PLAIN)
        table = self._table(stage, UNREADABLE) if shards is None else self._read(stage, UNREADABLE, shards)
        return table.filter(pl.col("error").is_not_null()).select("row", "sample_id", "error")

    def duplicates(self, dataset: str) -> pl.DataFrame:
        """Return `sample_id` and its `rows` (list of int64) for every id that two readable rows share."""
        if not self.catalogue.committed(dataset):
            return pl.DataFrame(schema={"sample_id": pl.String, "rows": pl.List(pl.Int64)})
        table = self._table((dataset, None, PLAIN), CONTENT)  # as `repeats`, which is asked next
        readable = table.filter(pl.col("error").is_null(), pl.col("sample_id").is_duplicated())
        ids = readable.group_by("sample_id", maintain_order=True).agg(rows=pl.col("row"))
        return ids.filter(pl.col("rows").list.len() > 1)

    def repeats(self, dataset: str) -> Repeats:
        """Return which readable rows have the content of another."""
        if not self.catalogue.committed(dataset):
            return Repeats(0, 0, 0)
        return find_repeats(self._table((dataset, None, PLAIN), CONTENT).filter(pl.col("error").is_null()))

    def _whole(self, stage: Stage, columns: Columns) -> pl.DataFrame:
        """Return the table of a stage, of every shard that is listed. Raises IncompleteCache, TryAgain."""
        table = self._table(stage, columns)
        self._check_whole(stage, self._shards[stage])
        return table

    def _check_whole(self, stage: Stage, shards: pl.Series) -> None:
        listed = self.catalogue.commits[stage].table["shard"]
        if gone := listed.filter(~listed.is_in(shards.implode())).to_list():
            raise TryAgain(
                f"{self.catalogue.url}: shards of {stage_folder(*stage)} are gone",
                found=f"no shard {', '.join(map(str, gone[:5]))}, which a moment ago was committed",
                expected="a cache from which no build and no repair takes shards meanwhile",
                do="the same command again",
            )

    def _table(self, stage: Stage, columns: Columns) -> pl.DataFrame:
        for (of, known), table in self._tables.items():
            if of == stage and (known is None or (columns is not None and {*columns} <= {*known})):
                return table if columns is None else table.select(_among(table.columns, columns))
        self._tables[stage, columns] = self._read(stage, columns)
        return self._tables[stage, columns]

    def _read(self, stage: Stage, columns: Columns, shards: Sequence[int] | None = None) -> pl.DataFrame:
        """Return what the commits of a stage say of their rows: `row`, `shard`, and some columns of theirs."""
        tables, numbers = [], []
        for commits in self.catalogue.iter_commits(stage, columns, shards):
            numbers += [commit.key.shard for commit in commits]
            tables += [_joined(commits)] if commits else []
        if shards is None:
            self._shards[stage] = pl.Series(numbers, dtype=pl.Int64)
        if not tables:
            raise IncompleteCache(
                f"{self.catalogue.url}: nothing of {stage_folder(*stage)} is built", do="cache build JOB.toml"
            )
        return pl.concat(tables, how="diagonal_relaxed", rechunk=True)


def _among(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    return [name for name in names if name in {"row", "shard", *columns}]


def _joined(commits: Sequence[Commit]) -> pl.DataFrame:
    """Return the tables of some commits as one, with the number of each row's shard."""
    tables = [commit.table for commit in commits]
    if all(table.schema.equals(tables[0].schema) for table in tables):
        # as one piece: a piece of each commit's own costs more than its few rows
        joined = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables).combine_chunks()))
    else:
        joined = pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in tables], how="diagonal_relaxed")
    numbers = np.repeat([commit.key.shard for commit in commits], [len(table) for table in tables])
    return joined.insert_column(1, pl.Series("shard", numbers, pl.Int64))
