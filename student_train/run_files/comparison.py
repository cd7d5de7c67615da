"""Many runs side by side, from what is in their folders; the table of `student compare`. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from storage.errors import MissingSource
from storage.format.stores.mirror import as_text, at_hand
from student_train.run_files.position import read_position
from student_train.run_files.records import CHECKPOINT_FILE, RUN_FILE, Held, lost_files, read_record

COMPARISON = {
    "student": pl.String,
    "status": pl.String,
    "architecture": pl.String,
    "parameters": pl.Int64,
    "accuracy": pl.Float64,
    "macro_f1": pl.Float64,
    "agreement": pl.Float64,
    "cross_entropy": pl.Float64,
    "perplexity": pl.Float64,
    "kl": pl.Float64,
    "cosine": pl.Float64,
    "spearman": pl.Float64,
    "retrieval": pl.Float64,
    "rmse": pl.Float64,
    "r2": pl.Float64,
    "teacher_rmse": pl.Float64,
    "calibration_error": pl.Float64,
    "epoch": pl.Int64,
    "epochs": pl.Int64,
    "steps": pl.Int64,
    "epochs_done": pl.Float64,
    "seconds": pl.Float64,
    "rows_per_s": pl.Float64,
    "latency_ms": pl.Float64,
    "inference_rows_per_s": pl.Float64,
    "device": pl.String,
    "error": pl.String,
}


def runs_at_hand(given: str) -> tuple[Path, list[str]]:
    """Return where a folder of runs lies on this machine, copied if it is in a bucket, and what is told then.

    Of a run only what lies in its own folder is copied: no checkpoints.

    Raises:
        MissingSource: there is nothing at an address.
        BadRequest, StorageFailure, StoreRefused, StoreUnavailable: as `storage.format.stores.mirror.at_hand`.
    """
    return at_hand(given, depth=1)


def list_runs(runs: Path) -> list[Path]:
    """Return the folders of all runs below a folder, settled or not, by name.

    Raises:
        MissingSource: there is no run.
    """
    below = sorted(path for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    found, named = [path for path in below if _is_run(path)], as_text(runs)
    if not found and _is_run(runs):
        above = named.rstrip("/").rpartition("/")[0] or "."
        raise MissingSource(
            f"{named} is one run, not a folder of runs", found=RUN_FILE, do=f"name the folder above it: {above}"
        )
    if not found:
        if runs.is_file():
            raise MissingSource(
                f"{named} is no folder of runs", found="a file", do="name the folder that a student job calls `runs`"
            )
        there = None if runs.is_dir() else "no such folder"
        raise MissingSource(f"there are no runs in {named}", found=there, do="student train JOB.toml")
    return found


def compare_runs(runs: Path) -> pl.DataFrame:
    """Return one row per run below a folder, the most accurate first; columns of COMPARISON.

    A run that is not settled has the status "unfinished" and the figures of its last whole epoch; one whose weights
    are gone is "lost". Each has the name of its folder.

    Raises:
        MissingSource: there is no run.
        CorruptObject: a record or a checkpoint is not one.
    """
    return rank([compare_run(folder) for folder in list_runs(runs)])


def rank(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Return rows of COMPARISON as a table, the most accurate first."""
    table = pl.DataFrame(rows, schema=COMPARISON)
    # nulls last: of some runs there is no figure yet
    order = ["accuracy", "agreement", "spearman", "rmse", "student"]
    return table.sort(order, descending=[True, True, True, False, False], nulls_last=True)


def compare_run(folder: Path) -> dict[str, Any]:
    """Return the row of one run for COMPARISON. Raises CorruptObject."""
    record = read_record(folder)
    if record is None:
        return _unfinished(folder)
    row = record.model_dump(include=set(COMPARISON)) | {"student": folder.name}  # wherever it was trained
    if lost := lost_files(folder, record):
        return row | {"status": "lost", "error": f"gone: {', '.join(lost)}"}
    if record.student != folder.name:
        return row | {"error": f"renamed, or a copy: the run of {record.student}"}
    return row | {"error": record.error and record.error.splitlines()[0]}  # a table has one line for it


def _is_run(folder: Path) -> bool:
    return (folder / RUN_FILE).exists() or (folder / CHECKPOINT_FILE).exists()


def _unfinished(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"student": folder.name, "status": "unfinished"}
    where = read_position(folder)
    if where is None:  # it is settled at this very moment
        return row
    last = where.history[-1].model_dump(include=set(Held.model_fields)) if where.history else {}
    student = where.identity.get("student")
    architecture = student.get("architecture") if isinstance(student, dict) else None
    steps, done = (where.history[-1].step, where.history[-1].epochs_done) if where.history else (None, None)
    row |= {"architecture": architecture, "epochs": where.epoch, "steps": steps, "epochs_done": done}
    return row | {"seconds": where.seconds} | last
