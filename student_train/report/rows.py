"""Students compared row by row, from their predictions of the same held rows.

Predictions are read one run at a time, and kept of a few only, so that hundreds of students take no more memory.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from storage.errors import StillroomError
from student_train.comparing.runs import ShownRun
from student_train.report.measures import (
    Calibration,
    accuracy_by_class,
    accuracy_of,
    calibration_of,
    cross_entropy_of,
    failures,
    outcomes_of,
)
from student_train.run_files.predictions import HeldTable, read_predictions
from student_train.tasks.held import STUDENT_SCHEMA


@dataclass
class Comparison:
    """What the predictions of some students amount to.

    Attributes:
        held: the rows, with the columns of one teacher; those of the first student's.
        kept: of a few students, by name, the same with their own columns.
        agreements: share of rows with the teacher's top class, by name; of students that had no teacher too.
        outcomes: who is right (`measures.OUTCOMES`), by name; only where there are labels and a teacher.
        by_class: `measures.accuracy_by_class` of every student.
        failed: of each row, how many students fail where the teacher does not.
        absent: students that left no predictions.
        faults: of files that cannot be read, by name of the student.
    """

    held: HeldTable
    kept: dict[str, pl.DataFrame] = field(default_factory=dict)
    agreements: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, dict[str, float]] = field(default_factory=dict)
    by_class: list[pl.DataFrame] = field(default_factory=list)
    failed: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    absent: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> str | None:
        """Return the name of the best student of whom predictions are kept."""
        return next(iter(self.kept), None)

    @property
    def num_students(self) -> int:
        """Return how many students are compared."""
        return len(self.by_class)

    def add(self, name: str, table: pl.DataFrame, *, keep: bool) -> None:
        """Count one student's predictions in."""
        alike = table.drop_nulls(["teacher_top", "top"])
        if len(alike):
            self.agreements[name] = float((alike["teacher_top"] == alike["top"]).mean())  # type: ignore[arg-type]
        if (outcomes := outcomes_of(table)) is not None:
            self.outcomes[name] = outcomes
        self.by_class.append(accuracy_by_class(table))
        self.failed[failures(table.with_row_index("index"))["index"].to_numpy()] += 1
        if keep:
            self.kept[name] = table


class TeacherRow(NamedTuple):
    """A teacher's own figures on held rows; None where there are no labels."""

    name: str
    accuracy: float | None
    cross_entropy: float | None
    calibration: Calibration | None


def compare_rows(runs: Sequence[ShownRun], keep: Collection[str]) -> Comparison | None:
    """Return a comparison of students that were measured on the same rows; None if none of them was asked.

    Args:
        runs: of students with weights, the best first.
        keep: names of those whose own columns are kept.
    """
    held = _held(runs)
    if held is None:
        return None
    found = Comparison(held, failed=np.zeros(len(held.table), np.int64))
    for run in runs:
        try:
            predictions = read_predictions(run.folder)
        except StillroomError as error:
            found.faults[run.name] = error.what
            continue
        if predictions is None:
            found.absent.append(run.name)
        elif not predictions.table["row"].equals(held.table["row"]):
            found.faults[run.name] = "its predictions are of other rows"
        else:
            table = pl.concat([held.table, predictions.table.select(*STUDENT_SCHEMA)], how="horizontal")
            found.add(run.name, table, keep=run.name in keep)
    return found


def teacher_row(held: HeldTable) -> TeacherRow | None:
    """Return the figures of the teacher whose columns some held rows have."""
    if held.teacher is None:
        return None
    figures = (function(held.table, "teacher_") for function in (accuracy_of, cross_entropy_of, calibration_of))
    return TeacherRow(held.teacher, *figures)  # type: ignore[arg-type]


def _held(runs: Sequence[ShownRun]) -> HeldTable | None:
    """Return the held rows as the first student that had a teacher has them, or else the first of all."""
    first = None
    for run in runs:
        try:
            predictions = read_predictions(run.folder)
        except StillroomError:
            continue  # told later
        if predictions is None:
            continue
        first = first or predictions
        if predictions.teacher is not None:
            first = predictions
            break
    if first is None:
        return None
    return replace(first, table=first.table.drop(*STUDENT_SCHEMA))
