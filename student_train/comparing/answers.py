"""What a comparison reads of a student's predictions, without torch; `run_files/predictions.py` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from student_train.run_files.predictions_file import read_file

FORMATS = (1, 2)  # of it, that are known
DATASET = "dataset"  # a column where rows are of several
TEACHER = {"teacher_top": pl.Int64, "teacher_label_log_probability": pl.Float64}
COLUMNS = {"row": pl.Int64, "label": pl.Int64, "top": pl.Int64, "label_log_probability": pl.Float64, **TEACHER}

# of the first format, by whether rows have positions
FIRST_TASKS = {True: "language_model", False: "image_classification"}


class Answers(NamedTuple):
    """A student's answers about held rows: COLUMNS, of which TEACHER are null where no `teacher` is known.

    And DATASET where rows are of several, each of which numbers its own.
    """

    task: str
    teacher: str | None
    table: pl.DataFrame


def read_answers(folder: Path) -> Answers | None:
    """Return what a run's student said of the held rows; None if nobody asked it.

    Raises:
        CorruptObject: the file is not one of these, or not as it was written.
    """
    return read_file(folder, _answers)


def _answers(about: dict[str, Any], table: pa.Table) -> Answers:
    if about["format_version"] not in FORMATS:
        raise ValueError("it is of another format")
    task = about.get("task") or FIRST_TASKS["at" in table.column_names]
    columns = COLUMNS | ({DATASET: pl.String} if DATASET in table.column_names else {})
    frame = pl.DataFrame(pl.from_arrow(table.select(list(columns))))
    return Answers(task, about["teacher"], frame.cast(columns))  # type: ignore[arg-type]
