"""What a run leaves behind, and many runs side by side. No torch here.

<runs>/<student>/
  run.json              the record of a finished or failed run; written last
  metrics.parquet       one row per epoch
  steps/00001.parquet   one row per step of an epoch
  predictions.parquet   what the student says of the held rows (`predictions.py`)
  job.toml              the job of this student alone, to repeat it (`job_text.py`)
  student.safetensors   the trained student, with student.json (`students/files.py`)
  checkpoint.json       of a run that is not finished (`checkpoint.py`)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import ConfigDict, ValidationError

from storage.errors import CorruptObject, MissingSource
from storage.format.objects import LocalObjects
from storage.options import Options
from storage.views import PLAIN

RUN_FILE = "run.json"
METRICS_FILE = "metrics.parquet"
STEPS_FOLDER = "steps"
JOB_FILE = "job.toml"
CHECKPOINT_FILE = "checkpoint.json"


class Held(Options):
    """A student's figures on the held rows; None where rows have no label, or no teacher to agree with.

    Attributes:
        accuracy: share of rows whose top class is the label.
        cross_entropy: to the labels, nats.
        calibration_error: expected calibration error over 15 bins of confidence.
        agreement: share of rows whose top class is the teacher's.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    accuracy: float | None = None
    cross_entropy: float | None = None
    calibration_error: float | None = None
    agreement: float | None = None


class EpochMetrics(Held):
    """One epoch.

    Attributes:
        epoch: from 1.
        view: of the rows that were trained on.
        train_loss: the objective, mean over the epoch's rows while it was trained.
        terms: the same for each term, before its weight.
        shares: of each term's gradient among all terms' (norms over the weights), in the epoch's first step. A term
            with next to none teaches nothing.
        learning_rate: of the last step.
        seconds: of training, evaluation apart.
        rows_per_s: trained rows a second.
    """

    epoch: int
    view: str = PLAIN
    train_loss: float
    terms: dict[str, float]
    shares: dict[str, float]
    learning_rate: float
    seconds: float
    rows_per_s: float


class RunRecord(Held):
    """One finished, stopped or failed student.

    Attributes:
        epoch: the one whose weights were exported: the last, or the best where the job has patience.
        epochs: how many were trained.
        seconds: of training and evaluation, over all interruptions.
        latency_ms: of one row, after training and on the device of the training (`latency.py`).
        inference_rows_per_s: of batches, there and then.
        cache: where the rows were read.
        identity: what the run was made from: the student's options, fingerprints, rows.
        error: of a failed run; of a stopped one, why others outran it.
        halving: the section of the job that stopped it.
    """

    format_version: Literal[1] = 1
    student: str
    status: Literal["finished", "failed", "stopped"]
    architecture: str
    parameters: int | None = None
    epoch: int | None = None
    epochs: int = 0
    seconds: float = 0.0
    rows_per_s: float | None = None
    latency_ms: float | None = None
    inference_rows_per_s: float | None = None
    device: str
    torch_version: str
    cache: str | None = None
    error: str | None = None
    halving: dict[str, Any] | None = None
    identity: dict[str, Any]


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a run's record: from now on it is finished, or failed."""
    LocalObjects(folder).put(RUN_FILE, (record.model_dump_json(indent=2) + "\n").encode())


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of a run, or None where there is none.

    Raises:
        CorruptObject: the file is not one.
    """
    path = folder / RUN_FILE
    if not path.exists():
        return None
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise CorruptObject(
            f"{path} is not the record of a run", found=str(error), do=f"delete {folder} and train this student again"
        ) from None


def write_metrics(folder: Path, history: Sequence[EpochMetrics]) -> None:
    """Write one row per epoch; each term of the objective has columns `term <name>` and `share <name>`."""
    rows = []
    for metrics in history:
        row = metrics.model_dump()
        row |= {f"term {name}": value for name, value in row.pop("terms").items()}
        row |= {f"share {name}": value for name, value in row.pop("shares").items()}
        rows.append(row)
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


COMPARISON = {
    "student": pl.String,
    "status": pl.String,
    "architecture": pl.String,
    "parameters": pl.Int64,
    "accuracy": pl.Float64,
    "agreement": pl.Float64,
    "cross_entropy": pl.Float64,
    "calibration_error": pl.Float64,
    "epoch": pl.Int64,
    "epochs": pl.Int64,
    "seconds": pl.Float64,
    "rows_per_s": pl.Float64,
    "latency_ms": pl.Float64,
    "inference_rows_per_s": pl.Float64,
    "device": pl.String,
    "error": pl.String,
}


def list_runs(runs: Path) -> list[Path]:
    """Return the folders of all runs below a folder, finished or not, by name.

    Raises:
        MissingSource: there is no run.
    """
    below = sorted(path for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    found = [path for path in below if _is_run(path)]
    if not found and _is_run(runs):
        raise MissingSource(
            f"{runs} is one run, not a folder of runs", found=RUN_FILE, do=f"name the folder above it: {runs.parent}"
        )
    if not found:
        there = None if runs.is_dir() else "a file" if runs.exists() else "no such folder"
        raise MissingSource(f"there are no runs in {runs}", found=there, do="student train JOB.toml")
    return found


def compare_runs(runs: Path) -> pl.DataFrame:
    """Return one row per run below a folder, the most accurate first; columns of COMPARISON.

    A run that is not finished has the status "unfinished" and the figures of its last whole epoch.

    Raises:
        MissingSource: there is no run.
        CorruptObject: a record is not one.
    """
    return rank([compare_run(folder) for folder in list_runs(runs)])


def rank(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Return rows of COMPARISON as a table, the most accurate first."""
    table = pl.DataFrame(rows, schema=COMPARISON)
    return table.sort("accuracy", "agreement", "student", descending=[True, True, False], nulls_last=True)


def compare_run(folder: Path) -> dict[str, Any]:
    """Return the row of one run for COMPARISON. Raises CorruptObject."""
    record = read_record(folder)
    if record is None:
        return _unfinished(folder)
    error = record.error and record.error.splitlines()[0]
    return record.model_dump(include=set(COMPARISON)) | {"error": error}


def _is_run(folder: Path) -> bool:
    return (folder / RUN_FILE).exists() or (folder / CHECKPOINT_FILE).exists()


def _unfinished(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"student": folder.name, "status": "unfinished"}
    try:
        checkpoint = json.loads((folder / CHECKPOINT_FILE).read_bytes())
        row["architecture"] = checkpoint["identity"]["student"]["architecture"]
        history = checkpoint["history"]
        row |= {"epochs": len(history), "seconds": checkpoint["seconds"]}
        row |= {name: value for name, value in (history[-1] if history else {}).items() if name in Held.model_fields}
    except (ValueError, KeyError, TypeError) as error:
        row["error"] = f"{CHECKPOINT_FILE} cannot be read: {error}"
    return row
