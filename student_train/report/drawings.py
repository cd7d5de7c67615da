"""Which pictures a page has, and what is in them; `figures.py` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from student_train.comparing.compared import Compared
from student_train.comparing.figures import GAINS, Gain, interval
from student_train.comparing.headline import named
from student_train.comparing.runs import ShownRun
from student_train.report import figures
from student_train.report.canvas import TEACHER_COLOUR
from student_train.report.figures import Curve, Panel, Point
from student_train.report.measures import Calibration, agreement_by_confidence, calibration_of, loss_by_place
from student_train.report.rows import Comparison, TeacherRow, teacher_row
from student_train.tasks import TASKS, ReportFacts

COSTS = {"parameters": "parameters", "latency_ms": "ms for one row"}
MOST_BARS = 12  # settings in the picture of who is right
MOST_EFFECTS = 8  # keys, each with a picture
FEWEST_ROWS = 200  # of which tenths say something
MOST_CALIBRATIONS = 3  # and the teacher


def draw_all(
    found: Compared, colours: Mapping[str, str], tops: Mapping[str, str], comparison: Comparison | None
) -> dict[str, str]:
    """Return the pictures that there is something to draw in, as data URIs by name.

    Args:
        found: settings that are compared, the best first.
        colours: of the students of highlighted ones, by name.
        tops: of those settings, by name.
        comparison: of their predictions.
    """
    teacher, gain = None if comparison is None else teacher_row(comparison.held), found.gain
    goal = None if teacher is None else getattr(teacher, gain.column, None)  # nobody agrees more with it than it does
    runs = [run for setting in found.settings for run in setting.runs]
    drawn = {"curves": _curves(runs, colours, gain, teacher)}
    if shown := found.effects[:MOST_EFFECTS]:
        drawn["effects"] = figures.effects(shown, gain, goal)
    if costs := trade_offs(found, tops, independent=comparison is None or facts_of(comparison).independent):
        drawn["trade_offs"] = figures.trade_offs(costs, gain, goal)
    if comparison is not None:
        drawn |= _of_rows(found, comparison, colours, teacher)
    return {name: picture for name, picture in drawn.items() if picture is not None}


def trade_offs(found: Compared, tops: Mapping[str, str], *, independent: bool) -> dict[str, list[Point]]:
    """Return what settings cost and gain, by the name of the cost; only costs that are known, and that differ.

    A share over `independent` samples has the interval of measuring it on so many.
    """
    gain, drawn = found.gain, {}
    for cost, name in COSTS.items():
        points = []
        for setting in found.settings:
            costs, gained = setting.mean(cost), setting.mean(gain.column)
            # a cost of 0 has no place on a logarithmic axis
            if costs and gained is not None and setting.is_measured:
                known = independent and gain.share and found.num_rows is not None
                low, high = interval(gained, found.num_rows or 0) if known else (gained, gained)
                points.append(Point(named(setting, found), costs, gained, low, high, tops.get(setting.name)))
        # of one size the times of a row differ by noise alone
        if len({setting.mean("parameters") for setting in found.settings}) > 1 and len({p.cost for p in points}) > 1:
            drawn[name] = points
    return drawn


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


def tenths(comparison: Comparison, colours: Mapping[str, str]) -> list[tuple[pl.DataFrame, str]]:
    """Return agreement by tenths of the teacher's confidence, and colour, of students with rows enough for it."""
    found = [(agreement_by_confidence(table), colours[name]) for name, table in comparison.kept.items()]
    return [(table, colour) for table, colour in found if table["rows"].sum() >= FEWEST_ROWS]


def _curves(runs: Sequence[ShownRun], colours: Mapping[str, str], gain: Gain, teacher: TeacherRow | None) -> str | None:
    curves = [Curve(run.history, colours.get(run.name)) for run in runs if len(run.history)]
    share = gain if gain.share else GAINS["accuracy"]
    goal = None if teacher is None or share.column != "accuracy" else teacher.accuracy
    panels = [
        Panel(share.column, f"{share.column}, held rows", True, goal),
        Panel("cross_entropy", "cross-entropy, held rows", False, teacher.cross_entropy if teacher else None),
        Panel("kl", "KL to the teacher, held rows", False, None),
        Panel("train_loss", "objective, trained rows", False, None),
    ]
    panels = [panel for panel in panels if any(c.history[panel.column].is_not_null().any() for c in curves)]
    several = any(len(curve.history) > 1 for curve in curves)  # a point is no curve
    by_steps = all(run.unit == "steps" and run.history["step"].is_not_null().all() for run in runs if len(run.history))
    along: figures.Along = "step" if by_steps else "epoch"
    return figures.learning_curves(curves, panels, along) if panels and several else None


def _of_rows(
    found: Compared, comparison: Comparison, colours: Mapping[str, str], teacher: TeacherRow | None
) -> dict[str, str | None]:
    shown = reliabilities(comparison, colours)
    firsts = {named(setting, found): comparison.outcomes.get(setting.first.name) for setting in found.settings}
    bars = [(name, outcome) for name, outcome in firsts.items() if outcome is not None][:MOST_BARS]
    kept = [(table, colours[name]) for name, table in comparison.kept.items()]
    lines = tenths(comparison, colours)
    drawn: dict[str, str | None] = {
        "calibration": figures.calibration([(each, colour) for _, colour, each in shown]) if shown else None,
        "agreement": figures.agreement(bars, lines) if bars or lines else None,
    }
    if facts_of(comparison).in_order and kept:
        places: list[tuple[pl.DataFrame, str]] = [(loss_by_place(table), colour) for table, colour in kept]
        known = teacher is not None and teacher.cross_entropy is not None
        drawn["loss"] = figures.loss_along_block(places, places[0][0] if known else None)
    return drawn
