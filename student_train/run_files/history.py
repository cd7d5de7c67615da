"""The figures of a run's epochs and of its steps, as Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from storage.format.objects import LocalObjects
from student_train.run_files.records import EpochMetrics, Held

METRICS_FILE = "metrics.parquet"
STEPS_FOLDER = "steps"


def write_metrics(folder: Path, history: Sequence[EpochMetrics]) -> None:
    """Write one row per epoch; each term of the objective has columns `term <name>` and `share <name>`."""
    rows = []
    for metrics in history:
        row = metrics.model_dump()
        row |= {f"term {name}": value for name, value in row.pop("terms").items()}
        row |= {f"share {name}": value for name, value in row.pop("shares").items()}
        rows.append(row)
    # a column of nulls alone would have no type
    floats = dict.fromkeys([*Held.model_fields, "train_loss", "learning_rate", "seconds", "rows_per_s"], pl.Float64)
    table = pl.DataFrame(rows, schema_overrides={"epoch": pl.Int64, **floats})
    first = ["epoch", "view", "train_loss"]
    sink = BytesIO()
    table.select(*first, pl.exclude(first)).write_parquet(sink)
    LocalObjects(folder).put(METRICS_FILE, sink.getvalue())


def write_steps(folder: Path, epoch: int, names: Sequence[str], rates: Sequence[float], losses_SK: Any) -> None:
    """Write one row per step of an epoch (from 1): learning rate, objective, and each term before its weight.

    Args:
        folder: of the run.
        epoch: that has ended.
        names: of the terms.
        rates: learning rate of each step.
        losses_SK: float32, (steps, 1 + terms), the objective first.
    """
    columns = {"train_loss": losses_SK[:, 0]} | {f"term {name}": losses_SK[:, k] for k, name in enumerate(names, 1)}
    about = {"epoch": [epoch] * len(rates), "step": range(len(rates)), "learning_rate": rates}
    sink = BytesIO()
    pl.DataFrame(about | columns, schema_overrides={"learning_rate": pl.Float64}).write_parquet(sink)
    LocalObjects(folder / STEPS_FOLDER).put(f"{epoch:05d}.parquet", sink.getvalue())
