"""The per-sample tables of a cache: what its commits say of each row, as one table of a dataset."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from storage.cache.catalogue import Catalogue
from storage.cache.repeats import Repeats, find_repeats
from storage.errors import IncompleteCache, TryAgain
from storage.format.shards import stage_folder
from storage.format.stages import Stage
from storage.tasks.base import LABELLED
from storage.views import PLAIN

TEACHER_COLUMNS = ("top", "top_probability", "entropy", "label_log_probability")


class Samples:
    """The per-sample tables of what a catalogue lists. Each commit is read at most once while this lives."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        self._tables: dict[Stage, pl.DataFrame] = {}

    def of(self, dataset: str, teachers: Iterable[str] = ()) -> pl.DataFrame:
        """Return one row per readable sample of the committed shards, in row order.

        Args:
            dataset: its name.
            teachers: whose per-sample columns to add, `<teacher>_top`, `_top_probability`, `_entropy` (nats) and
                `_label_log_probability` (of the row's own label); null where the teacher's shard is not committed.
                Of tokens they are means over the labelled positions, of which there are `_labelled`, if that was kept.
                They are of the plain inputs if the teacher was asked about them, else of view-000.

        Returns:
            `row` int64, `shard` int64, `sample_id` string, `label` int64 (null: unlabelled), `split` string,
            `payload_digest` and `label_digest` string (of format 2, `digest` of both), columns of the source, then
            those of the teachers.

        Raises:
            IncompleteCache: nothing of the dataset, or of a teacher, is committed.
            TryAgain: a shard was dropped after the catalogue was read.
        """
        samples = self._whole(dataset, None).filter(pl.col("error").is_null()).drop("error")
        for teacher in teachers:
            # of a teacher that has answered nothing `_whole` says so
            view = next(iter(self.catalogue.view_names(dataset, teacher)), PLAIN)
            table = self._whole(dataset, teacher, view)
            columns = {name: f"{teacher}_{name}" for name in (*TEACHER_COLUMNS, LABELLED) if name in table.columns}
            table = table.select("row", *columns).rename(columns)
            # left: rows whose shard it has not answered stay
            samples = samples.join(table, on="row", how="left", maintain_order="left")
        return samples

    def quarantined(self, dataset: str) -> pl.DataFrame:
        """Return `row`, `sample_id` and `error` of the samples that could not be read, in row order."""
        return self._table(dataset, None).filter(pl.col("error").is_not_null()).select("row", "sample_id", "error")

    def duplicates(self, dataset: str) -> pl.DataFrame:
        """Return `sample_id` and its `rows` (list of int64) for every id that two readable rows share."""
        if not self.catalogue.committed(dataset):
            return pl.DataFrame(schema={"sample_id": pl.String, "rows": pl.List(pl.Int64)})
        readable = self._table(dataset, None).filter(pl.col("error").is_null(), pl.col("sample_id").is_duplicated())
        ids = readable.group_by("sample_id", maintain_order=True).agg(rows=pl.col("row"))
        return ids.filter(pl.col("rows").list.len() > 1)

    def repeats(self, dataset: str) -> Repeats:
        """Return which readable rows have the content of another."""
        if not self.catalogue.committed(dataset):
            return Repeats(0, 0, 0)
        return find_repeats(self._table(dataset, None).filter(pl.col("error").is_null()))

    def _whole(self, dataset: str, teacher: str | None, view: str = PLAIN) -> pl.DataFrame:
        """Return the table of a stage, of every shard that is listed. Raises IncompleteCache, TryAgain."""
        table = self._table(dataset, teacher, view)
        if gone := self.catalogue.committed(dataset, teacher, view) - set(table["shard"]):
            raise TryAgain(
                f"{self.catalogue.url}: shards of {stage_folder(dataset, teacher, view)} are gone",
                found=f"no shard {', '.join(map(str, sorted(gone)[:5]))}, which a moment ago was committed",
                expected="a cache from which no build and no repair takes shards meanwhile",
                do="the same command again",
            )
        return table

    def _table(self, dataset: str, teacher: str | None, view: str = PLAIN) -> pl.DataFrame:
        stage = (dataset, teacher, view)
        if stage not in self._tables:
            commits = self.catalogue.read_commits(*stage)
            if not commits:
                raise IncompleteCache(
                    f"{self.catalogue.url}: nothing of {stage_folder(*stage)} is built", do="cache build JOB.toml"
                )
            numbers = [commit.key.shard for commit in commits for _ in range(len(commit.table))]
            table = pl.concat([pl.DataFrame(pl.from_arrow(commit.table)) for commit in commits], how="diagonal_relaxed")
            self._tables[stage] = table.insert_column(1, pl.Series("shard", numbers, pl.Int64))
        return self._tables[stage]
