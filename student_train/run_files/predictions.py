"""What a student says of the held rows, row by row, beside what its teacher said: `predictions.parquet`.

Of images and the like every held row is a row of the table. Of tokens every position of the first held blocks is one,
some thousands at most (`running/predictions.py`): there may be millions.

    position                  of the row, or block, in the held selection
    row, shard, sample_id     in the cache
    at, token                 of tokens: the position in the block, and the token that is there
    label                     null: none
    teacher_top, …            the teacher's columns of the cache's own table, of tokens of this position; null: unknown
    top, top_probability      the student's class, and how sure it is
    label_log_probability     nats, the student's
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from storage.errors import CorruptObject
from storage.format.objects import LocalObjects
from storage.format.sealed import seal, unseal

PREDICTIONS_FILE = "predictions.parquet"
FORMAT_VERSION = 1

HELD_SCHEMA = {"position": pl.Int64, "row": pl.Int64, "shard": pl.Int64, "sample_id": pl.String, "label": pl.Int64}
TOKEN_SCHEMA = {"at": pl.Int64, "token": pl.Int64}
TEACHER_SCHEMA = {
    "teacher_top": pl.Int64,
    "teacher_top_probability": pl.Float32,
    "teacher_label_log_probability": pl.Float32,
}
STUDENT_SCHEMA = {"top": pl.Int64, "top_probability": pl.Float32, "label_log_probability": pl.Float32}


@dataclass(frozen=True)
class HeldTable:
    """Held rows, or positions, and what is known of each.

    Attributes:
        cache: its id.
        dataset: of the rows.
        teacher: whose columns there are; None: nobody's.
        of_tokens: whether they are positions of tokens.
        num_rows: rows, or blocks, that are held in all.
        table: HELD_SCHEMA, of tokens TOKEN_SCHEMA, TEACHER_SCHEMA; of a student's predictions STUDENT_SCHEMA too.
    """

    cache: str
    dataset: str
    teacher: str | None
    of_tokens: bool
    num_rows: int
    table: pl.DataFrame

    @property
    def about(self) -> dict[str, Any]:
        """Return all but the table, as JSON."""
        names = ("cache", "dataset", "teacher", "of_tokens", "num_rows")
        return {"format_version": FORMAT_VERSION} | {name: getattr(self, name) for name in names}


def write_predictions(folder: Path, predictions: HeldTable) -> None:
    """Write what a run's student said of the held rows."""
    LocalObjects(folder).put(PREDICTIONS_FILE, seal(predictions.table.to_arrow(), predictions.about))


def read_predictions(folder: Path) -> HeldTable | None:
    """Return what a run's student said of the held rows; None if nobody asked it.

    Raises:
        CorruptObject: the file is not one of these, or not as it was written.
    """
    path = folder / PREDICTIONS_FILE
    if not path.exists():
        return None
    try:
        about, table = unseal(path.read_bytes())
        if about.pop("format_version") != FORMAT_VERSION:
            raise ValueError("it is of another format")
        schema = HELD_SCHEMA | (TOKEN_SCHEMA if about["of_tokens"] else {}) | TEACHER_SCHEMA | STUDENT_SCHEMA
        frame = pl.DataFrame(pl.from_arrow(table)).select(*schema).cast(schema)  # type: ignore[arg-type]
        return HeldTable(**about, table=frame)
    except Exception as error:  # whatever a file that only looks like one leads to
        raise CorruptObject(
            f"{path} holds no predictions",
            found=str(error) or type(error).__name__,
            do=f"delete {folder} and train this student again",
        ) from None
