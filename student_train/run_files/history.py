"""The figures of a run's evaluations and of its steps, as Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from storage.errors import CorruptObject
from storage.format.objects import LocalObjects
from storage.format.sealed import is_sealed, seal, unseal
from student_train.run_files.records import SEVERAL, EpochMetrics, Held

METRICS_FILE = "metrics.parquet"
STEPS_FOLDER = "steps"
FORMAT_VERSION = 2  # 1 had no seal


def write_metrics(folder: Path, history: Sequence[EpochMetrics]) -> None:
    """Write one row per evaluation; each term of the objective has columns `term <name>` and `share <name>`.

    Where the held rows are of several datasets, there are `<figure> of <dataset>` too; of a student of several teachers
    `<figure> beside <teacher>`, and `<figure> beside <teacher> of <dataset>`.
    """
    rows = []
    for metrics in history:
        row = metrics.model_dump(exclude={*SEVERAL}) | metrics.named_apart
        row |= {f"term {name}": value for name, value in row.pop("terms").items()}
        row |= {f"share {name}": value for name, value in row.pop("shares").items()}
        rows.append(row)
    # a column of nulls alone would have no type
    floats = dict.fromkeys(
        [*Held.model_fields, "epochs_done", "train_loss", "learning_rate", "seconds", "rows_per_s"], pl.Float64
    )
    table = pl.DataFrame(rows, schema_overrides={"epoch": pl.Int64, "step": pl.Int64, **floats})
    first = ["epoch", "step", "view", "train_loss"]
    _write(folder, METRICS_FILE, table.select(*first, pl.exclude(first)))


def read_metrics(folder: Path) -> pl.DataFrame | None:
    """Return one row per evaluation of a run, as `write_metrics` wrote them; None if there is no such file.

    Raises:
        CorruptObject: it is not as it was written.
    """
    return _read(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else None


def write_steps(folder: Path, epoch: int, names: Sequence[str], rates: Sequence[float], losses_SK: Any) -> None:
    """Write one row per step of an epoch (from 1) so far: learning rate, objective, and each term before its weight.

    Args:
        folder: of the run.
        epoch: which.
        names: of the terms.
        rates: learning rate of each step.
        losses_SK: float32, (steps, 1 + terms), the objective first.
    """
    columns = {"train_loss": losses_SK[:, 0]} | {f"term {name}": losses_SK[:, k] for k, name in enumerate(names, 1)}
    about = {"epoch": [epoch] * len(rates), "step": range(len(rates)), "learning_rate": rates}
    table = pl.DataFrame(about | columns, schema_overrides={"learning_rate": pl.Float64})
    _write(folder / STEPS_FOLDER, _steps_file(epoch), table)


def read_steps(folder: Path, epoch: int) -> pl.DataFrame:
    """Return one row per step of an epoch (from 1), as `write_steps` wrote them. Raises CorruptObject."""
    return _read(folder / STEPS_FOLDER / _steps_file(epoch))


def _steps_file(epoch: int) -> str:
    return f"{epoch:05d}.parquet"


def _write(folder: Path, name: str, table: pl.DataFrame) -> None:
    LocalObjects(folder).put(name, seal(table.to_arrow(), {"format_version": FORMAT_VERSION}))


def _read(path: Path) -> pl.DataFrame:
    try:
        data = path.read_bytes()
        # Of format 1 there is nothing to check it by.
        table = pl.from_arrow(unseal(data).table) if is_sealed(data) else pl.read_parquet(BytesIO(data))
        return pl.DataFrame(table)
    except Exception as error:  # whatever a file that only looks like Parquet leads to
        raise CorruptObject(
            f"{path} is not as it was written",
            found=str(error)[:200] or type(error).__name__,
            do=f"delete {path.name}; or, to have it again, the run's folder, and train this student again",
        ) from None
