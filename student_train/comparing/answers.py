"""What a comparison reads of a student's predictions, without torch: the file is `run_files/predictions.py`'s."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl

from storage.errors import CorruptObject
from storage.format.sealed import unseal
from student_train.run_files.records import check_predictions

PREDICTIONS_FILE = "predictions.parquet"
FORMATS = (1, 2)  # of it, that are known
DATASET = "dataset"  # a column where rows are of several
TEACHER = {"teacher_top": pl.Int64, "teacher_label_log_probability": pl.Float64}
COLUMNS = {"row": pl.Int64, "label": pl.Int64, "top": pl.Int64, "label_log_probability": pl.Float64, **TEACHER}

FIRST_TASKS = {
    True: "language_model",
    False: "image_classification",
}  # of the first format, by whether rows have positions


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
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return None
    try:
        data = path.read_bytes()
        check_predictions(folder, data)
        about, table = unseal(data)
        if about["format_version"] not in FORMATS:
            raise ValueError("it is of another format")
        task = about.get("task") or FIRST_TASKS["at" in table.column_names]
        columns = COLUMNS | ({DATASET: pl.String} if DATASET in table.column_names else {})
        frame = pl.DataFrame(pl.from_arrow(table.select(list(columns))))
        return Answers(task, about["teacher"], frame.cast(columns))  # type: ignore[arg-type]
    except Exception as error:  # whatever a file that only looks like one leads to
        raise CorruptObject(
            f"{path} holds no predictions",
            found=str(error) or type(error).__name__,
            do=f"delete {folder} and train this student again",
        ) from None
