"""What predictions amount to: pure functions of tables. Rows without a label, or without a teacher, count for nothing.

Tables are those of `predictions.HeldTable`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from storage.targets.calibration import bin_of, expected_error

OUTCOMES = ("both right", "only the teacher", "only the student", "both wrong, alike", "both wrong, each its own")


class Calibration(NamedTuple):
    """How far a confidence can be believed.

    Attributes:
        bins: one row per bin that has rows: `confidence` and `accuracy` (means), `rows`, and `share` of all rows.
        error: expected calibration error.
    """

    bins: pl.DataFrame
    error: float


def accuracy_of(table: pl.DataFrame, who: str = "") -> float | None:
    """Return the accuracy of the student, or of the "teacher_"."""
    known = table.filter(pl.col("label").is_not_null(), pl.col(f"{who}top").is_not_null())
    return None if known.is_empty() else float((known["label"] == known[f"{who}top"]).mean())  # type: ignore[arg-type]


def cross_entropy_of(table: pl.DataFrame, who: str = "") -> float | None:
    """Return the cross-entropy to the labels in nats, of the student or of the "teacher_"."""
    mean = table.filter(pl.col("label").is_not_null())[f"{who}label_log_probability"].mean()
    return None if mean is None else -float(mean)  # type: ignore[arg-type]


def calibration_of(table: pl.DataFrame, who: str = "") -> Calibration | None:
    """Return the reliability of the student, or of the "teacher_"; None without rows."""
    confidence, right = pl.col(f"{who}top_probability").cast(pl.Float64), pl.col(f"{who}top") == pl.col("label")
    known = table.select(confidence=confidence, right=right.cast(pl.Float64)).drop_nulls()
    if known.is_empty():
        return None
    means = {"confidence": pl.col("confidence").mean(), "accuracy": pl.col("right").mean()}
    by_bin = known.group_by(bin=bin_of(pl.col("confidence")).cast(pl.Int64))
    bins = by_bin.agg(**means, rows=pl.len(), share=pl.len() / len(known)).sort("bin")
    error = expected_error(bins["rows"], bins["confidence"] * bins["rows"], bins["accuracy"] * bins["rows"])
    return Calibration(bins, error)


def accuracy_by_class(table: pl.DataFrame) -> pl.DataFrame:
    """Return `label`, `rows`, `accuracy` and `teacher_accuracy` (null: unknown) of each class that has rows."""
    right = {"accuracy": pl.col("top") == pl.col("label"), "teacher_accuracy": pl.col("teacher_top") == pl.col("label")}
    means = {name: hit.cast(pl.Float64).mean() for name, hit in right.items()}
    return table.filter(pl.col("label").is_not_null()).group_by("label").agg(rows=pl.len(), **means).sort("label")


def outcomes_of(table: pl.DataFrame) -> dict[str, float] | None:
    """Return the share of rows of each of OUTCOMES; None unless there are labels and a teacher."""
    known = table.filter(pl.col("label").is_not_null(), pl.col("teacher_top").is_not_null())
    if known.is_empty():
        return None
    student, teacher = pl.col("top") == pl.col("label"), pl.col("teacher_top") == pl.col("label")
    alike = pl.col("top") == pl.col("teacher_top")
    each = (student & teacher, ~student & teacher, student & ~teacher, ~student & ~teacher & alike)
    # not strict: the last outcome is what remains
    shares = known.select(**{name: share.mean() for name, share in zip(OUTCOMES, each, strict=False)}).row(0)
    return dict(zip(OUTCOMES, (*shares, max(0.0, 1 - sum(shares))), strict=True))


def agreement_by_confidence(table: pl.DataFrame, parts: int = 10) -> pl.DataFrame:
    """Return `confidence` of the teacher, `agreement` with it, and `rows`, of so many equal parts of rows, in order."""
    known = table.drop_nulls(["teacher_top", "teacher_top_probability", "top"]).sort("teacher_top_probability")
    part = (pl.int_range(pl.len()) * parts // pl.len()).alias("part")  # by rank, so that parts are equal in rows
    alike = (pl.col("top") == pl.col("teacher_top")).cast(pl.Float64)
    means = {
        "confidence": pl.col("teacher_top_probability").cast(pl.Float64).mean(),
        "agreement": alike.mean(),
        "rows": pl.len(),
    }
    return known.group_by(part).agg(**means).sort("part").drop("part")


def confusions(table: pl.DataFrame, most: int = 10) -> pl.DataFrame:
    """Return the most frequent mistakes: `label`, `top`, `rows`, and `teacher_rows`, those that the teacher shares."""
    wrong = table.filter(pl.col("label").is_not_null(), pl.col("top") != pl.col("label"))
    shared = (pl.col("teacher_top") == pl.col("top")).sum()
    found = wrong.group_by("label", "top").agg(rows=pl.len(), teacher_rows=shared)
    return found.sort("rows", "label", "top", descending=[True, False, False]).head(most)


def failures(table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows where the student is wrong and the teacher is not, those first of which the student is surest."""
    failed = table.filter(pl.col("teacher_top") == pl.col("label"), pl.col("top") != pl.col("label"))
    return failed.sort("top_probability", "position", descending=[True, False], nulls_last=True)


def loss_by_place(table: pl.DataFrame, parts: int = 32) -> pl.DataFrame:
    """Return, of tokens, `at` and the mean losses `student` and `teacher` (nats; null: unknown) along a block."""
    length = int(table["at"].max()) + 1  # type: ignore[arg-type]
    width = -(-length // parts)
    means = {
        "at": pl.col("at").cast(pl.Float64).mean(),
        "student": -pl.col("label_log_probability").cast(pl.Float64).mean(),
        "teacher": -pl.col("teacher_label_log_probability").cast(pl.Float64).mean(),
    }
    return table.drop_nulls("label").group_by(part=pl.col("at") // width).agg(**means).sort("part").drop("part")


def costliest_tokens(table: pl.DataFrame, most: int = 10) -> pl.DataFrame:
    """Return the labels on which a student loses most beside its teacher.

    Returns:
        `label`, `rows`, mean losses `student` and `teacher` in nats, and `excess`: the label's share of all that the
        student's loss is above the teacher's, summed over positions.
    """
    known = table.drop_nulls(["label", "label_log_probability", "teacher_label_log_probability"])
    student, teacher = (-pl.col(f"{who}label_log_probability").cast(pl.Float64) for who in ("", "teacher_"))
    total = known.select((student - teacher).sum()).item() if len(known) else 0.0
    found = known.group_by("label").agg(
        rows=pl.len(), student=student.mean(), teacher=teacher.mean(), excess=(student - teacher).sum() / (total or 1.0)
    )
    return found.sort("excess", "label", descending=[True, False]).head(most)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points (cost, gain) no other one beats in both, by rising cost; of equal ones the first."""
    front: list[int] = []
    # of one cost the best first: the others gain no more
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
