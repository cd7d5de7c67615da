"""Which pictures a page has, and what is in them; `figures.py` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from student_train.comparing.runs import ShownRun
from student_train.report import figures
from student_train.report.canvas import TEACHER_COLOUR
from student_train.report.figures import Curve, Panel, Point
from student_train.report.measures import Calibration, agreement_by_confidence, calibration_of, interval, loss_by_place
from student_train.report.rows import Comparison, TeacherRow, teacher_row
from student_train.tasks import TASKS, ReportFacts

COSTS = {"parameters": "parameters", "latency_ms": "ms for one row"}
MOST_BARS = 12  # students in the picture of who is right
MOST_CALIBRATIONS = 3  # and the teacher


def draw_all(
    runs: Sequence[ShownRun], colours: Mapping[str, str], gain: str, comparison: Comparison | None
) -> dict[str, str]:
    """Return the pictures that there is something to draw in, as data URIs by name.

    Args:
        runs: those that are compared, the best first.
        colours: of the highlighted ones, by name.
        gain: the column by which they are compared.
        comparison: of their predictions.
    """
    teacher = None if comparison is None else teacher_row(comparison.held)
    found = {"curves": _curves(runs, colours, gain, teacher)}
    if costs := trade_offs(runs, colours, gain, independent=comparison is None or facts_of(comparison).independent):
        goal = teacher.accuracy if teacher is not None and gain == "accuracy" else None
        found["trade_offs"] = figures.trade_offs(costs, gain, goal)
    if comparison is not None:
        found |= _of_rows(comparison, colours, teacher)
    return {name: picture for name, picture in found.items() if picture is not None}


def trade_offs(
    runs: Sequence[ShownRun], colours: Mapping[str, str], gain: str, *, independent: bool
) -> dict[str, list[Point]]:
    """Return what students cost and gain, by the name of the cost; only costs that are known.

    What is gained has an interval where it is a mean over `independent` samples.
    """
    found: dict[str, list[Point]] = {}
    for cost, name in COSTS.items():
        for run in runs:
            costs, gained = run.figures[cost], run.figures[gain]
            # a cost of 0 has no place on a logarithmic axis
            if costs and gained is not None and run.record is not None:
                known = independent and run.held_rows is not None
                low, high = interval(gained, run.held_rows or 0) if known else (gained, gained)
                point = Point(run.name, costs, gained, low, high, colours.get(run.name))
                found.setdefault(name, []).append(point)
    return found


def facts_of(comparison: Comparison) -> ReportFacts:
    """Return what there is to show of the task of compared rows."""
    return TASKS[comparison.held.task].report


def reliabilities(comparison: Comparison, colours: Mapping[str, str]) -> list[tuple[str, str, Calibration]]:
    """Return name, colour and calibration of a few students and of the teacher."""
    teacher = teacher_row(comparison.held)
    found = [(name, colours[name], calibration_of(table)) for name, table in comparison.kept.items()]
    shown = [(name, colour, each) for name, colour, each in found if each is not None][:MOST_CALIBRATIONS]
    if teacher is not None and teacher.calibration is not None:
        shown.append((teacher.name, TEACHER_COLOUR, teacher.calibration))
    return shown


def _curves(runs: Sequence[ShownRun], colours: Mapping[str, str], gain: str, teacher: TeacherRow | None) -> str | None:
    curves = [Curve(run.history, colours.get(run.name)) for run in runs if len(run.history)]
    panels = [
        Panel(gain, f"{gain}, held rows", True, teacher.accuracy if teacher and gain == "accuracy" else None),
        Panel("cross_entropy", "cross-entropy, held rows", False, teacher.cross_entropy if teacher else None),
        Panel("train_loss", "objective, trained rows", False, None),
    ]
    panels = [panel for panel in panels if any(c.history[panel.column].is_not_null().any() for c in curves)]
    return figures.learning_curves(curves, panels) if panels else None


def _of_rows(comparison: Comparison, colours: Mapping[str, str], teacher: TeacherRow | None) -> dict[str, str | None]:
    shown = reliabilities(comparison, colours)
    bars = list(comparison.outcomes.items())[:MOST_BARS]
    kept = [(table, colours[name]) for name, table in comparison.kept.items()]
    lines = [(agreement_by_confidence(table), colour) for table, colour in kept]
    lines = [(line, colour) for line, colour in lines if len(line)]
    found: dict[str, str | None] = {
        "calibration": figures.calibration([(each, colour) for _, colour, each in shown]) if shown else None,
        "agreement": figures.agreement(bars, lines) if bars or lines else None,
    }
    if facts_of(comparison).in_order and kept:
        places: list[tuple[pl.DataFrame, str]] = [(loss_by_place(table), colour) for table, colour in kept]
        known = teacher is not None and teacher.cross_entropy is not None
        found["loss"] = figures.loss_along_block(places, places[0][0] if known else None)
    return found
