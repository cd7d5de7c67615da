"""What a student says of the held rows, row by row, beside what its teacher said: `predictions.parquet`.

Each of its rows is a held site. Of a language model they are the positions of the first held blocks, some thousands at
most: there may be millions.

    position                  of the row, or block, in the held selection
    dataset                   if there are several
    row, shard, sample_id     in the cache
    at, token                 of tokens: the position in the block, and the token that is there
    label                     null: none
    teacher_top, …            the teacher's columns of the cache's own table, of tokens of this position; null: unknown
    top, top_probability      the student's class, and how sure it is
    label_log_probability     nats, the student's
    vector                    of answers that are vectors: the student's own, in place of classes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from storage.format.objects import LocalObjects
from storage.format.sealed import seal
from student_train.run_files.predictions_file import PREDICTIONS_FILE, read_file
from student_train.tasks import TASKS
from student_train.tasks.held import DATASET, HELD_SCHEMA, STUDENT_SCHEMA, TEACHER_SCHEMA

FORMAT_VERSION = 2  # 1 said whether rows were tokens, in place of their task


@dataclass(frozen=True)
class HeldTable:
    """Held sites, and what is known of each.

    Attributes:
        cache: its id.
        dataset: of the rows; of several, their names with commas between them.
        teacher: whose columns there are; None: nobody's.
        task: what is asked of them.
        num_rows: rows, or blocks, that are held in all.
        table: HELD_SCHEMA, the task's `site_schema`, TEACHER_SCHEMA; of a student's predictions STUDENT_SCHEMA too.
    """

    cache: str
    dataset: str
    teacher: str | None
    task: str
    num_rows: int
    table: pl.DataFrame

    @property
    def datasets(self) -> list[str]:
        """Return the datasets of the rows."""
        return self.dataset.split(",")

    @property
    def about(self) -> dict[str, Any]:
        """Return all but the table, as JSON."""
        names = ("cache", "dataset", "teacher", "task", "num_rows")
        return {"format_version": FORMAT_VERSION} | {name: getattr(self, name) for name in names}


def held_schema(site_schema: dict[str, type[pl.DataType]], *, several: bool) -> dict[str, type[pl.DataType]]:
    """Return the columns of held sites before a student is asked; `several`: of more than one dataset."""
    return HELD_SCHEMA | ({DATASET: pl.String} if several else {}) | site_schema | TEACHER_SCHEMA


def write_predictions(folder: Path, predictions: HeldTable) -> None:
    """Write what a run's student said of the held rows."""
    LocalObjects(folder).put(PREDICTIONS_FILE, seal(predictions.table.to_arrow(), predictions.about))


def read_predictions(folder: Path) -> HeldTable | None:
    """Return what a run's student said of the held rows; None if nobody asked it.

    Raises:
        CorruptObject: the file is not one of these, or not as it was written.
    """
    return read_file(folder, _held_table)


def _held_table(about: dict[str, Any], table: pa.Table) -> HeldTable:
    if (version := about.pop("format_version")) == 1:
        # What format 1 said; there were two tasks.
        about["task"] = "language_model" if about.pop("of_tokens") else "image_classification"
    elif version != FORMAT_VERSION:
        raise ValueError("it is of another format")
    several = DATASET in table.column_names
    task = TASKS[about["task"]]
    schema = held_schema(task.site_schema, several=several) | STUDENT_SCHEMA | task.predicted
    frame = pl.DataFrame(pl.from_arrow(table)).select(*schema).cast(schema)  # type: ignore[arg-type]
    return HeldTable(**about, table=frame)
