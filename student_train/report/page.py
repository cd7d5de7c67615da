"""The page as HTML: one file that opens offline, asks nothing of any network, and runs no script but its own.

Names, labels and text are hostile: the template escapes all of them, and the page's own policy lets a browser run only
the script whose digest it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from storage.errors import si
from student_train.comparing.runs import ShownRun
from student_train.report.caches import dense_bytes
from student_train.report.canvas import TEACHER_COLOUR
from student_train.report.contents import FEW_STUDENTS, Contents
from student_train.report.drawings import MOST_BARS, draw_all, reliabilities, trade_offs
from student_train.report.figures import OUTCOME_COLOURS, front_of
from student_train.report.measures import interval

NONE = "–"  # of a figure that nobody knows
MOST_JOBS = 10  # that are seen at once


class Cell(NamedTuple):
    """What a table shows, and by what it is sorted; None comes last whichever way."""

    text: str
    value: float | str | None


class Column(NamedTuple):
    """A column of the leaderboard."""

    title: str
    tip: str
    cell: Callable[[ShownRun], Cell]
    numeric: bool = True


def percent(value: float | None, digits: int = 2) -> str:
    """Return a share: 97.41 %."""
    return NONE if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many digits."""
    return NONE if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.{digits}g}"


def short(value: float | None) -> str:
    """Return a number with three digits and a prefix."""
    return NONE if value is None else si(value)


def render(contents: Contents) -> str:
    """Return the page."""
    script, style = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    # strict: a name that is missing is an error, not a blank
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "number": number, "si": short, "facts": facts}
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # as the page's policy names it
    costs = trade_offs(contents.main, contents.colours, contents.gain, independent=contents.task.independent)
    return template.render(
        c=contents,
        pictures=draw_all(contents.main, contents.colours, contents.gain, contents.comparison),
        best=contents.best,
        shown=contents.shown,
        columns=leaderboard(contents),
        outcome_colours=OUTCOME_COLOURS,
        teacher_colour=TEACHER_COLOUR,
        most_bars=MOST_BARS,
        most_jobs=MOST_JOBS,
        few_students=FEW_STUDENTS,
        identity=identity_text,
        reliabilities=reliabilities(contents.comparison, contents.colours) if contents.comparison else [],
        fronts={cost: front_of(points) for cost, points in costs.items()},
        smallest=smallest_equal(contents),
        common=common_identity(contents.runs),
        interval=interval,
        dense_bytes=dense_bytes,
        devices=sorted({run.record.device for run in contents.main if run.record is not None}),
        version=version("stillroom"),
        # Of this package alone, whose files hold no names; all else is escaped.
        script=Markup(script),  # noqa: S704
        style=Markup(style),  # noqa: S704
        script_digest=digest,
    )


def leaderboard(contents: Contents) -> list[Column]:
    """Return the columns that say something of at least one run."""
    agreements = {} if contents.comparison is None else contents.comparison.agreements
    epochs = {run.figures["epochs"] for run in contents.runs}
    figured = [
        Column("accuracy", "share of held rows whose top class is the label", _figure("accuracy", percent)),
        Column("macro-F1", "mean over the classes of F1, each class alike", _figure("macro_f1", percent)),
        Column("behind", "the best, in points, on the same rows; with its 95 % interval", _behind(contents)),
        Column("agreement", "share of held rows whose top class is the teacher's", _agreement(agreements)),
        Column("loss", "cross-entropy to the labels of the held rows, nats", _figure("cross_entropy", number)),
        Column("ECE", "expected calibration error, 15 bins", _figure("calibration_error", percent)),
        Column("parameters", "that are trained and kept", _figure("parameters", short)),
        Column("ms/row", "latency of one row, where it was trained", _figure("latency_ms", number)),
        Column("rows/s", "inference in batches, where it was trained", _figure("inference_rows_per_s", short)),
        # where all have had as many it says nothing
        *[Column("epochs", "that were trained", _figure("epochs", number))] * (len(epochs) > 1),
        Column("seconds", "of training and evaluation", _figure("seconds", number)),
    ]
    varied = [Column(name.removeprefix("options."), name, _option(name), numeric=False) for name in contents.varied]
    rows = [run.rows_of("validation") for run in contents.runs]
    measured = [Column("measured on", "held rows", _held_rows, numeric=False)] if len(set(rows)) > 1 else []
    columns = [*figured, *measured, *varied]
    return [column for column in columns if any(column.cell(run).value is not None for run in contents.runs)]


def smallest_equal(contents: Contents) -> ShownRun | None:
    """Return the student of fewest parameters that cannot be told from the best, if that is another."""
    best, found = contents.best, contents.comparison
    if best is None or found is None:
        return None
    able = [run for run in contents.main if run.figures["parameters"] and _is_equal(found.behind.get(run.name))]
    smallest = min(able, key=lambda run: run.figures["parameters"], default=best)
    return smallest if smallest.figures["parameters"] != best.figures["parameters"] else None


def facts(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested JSON as lines: ("encoding.kind", "sparse")."""
    lines: list[tuple[str, str]] = []
    for key, below in value.items():
        if isinstance(below, dict):
            lines += facts(below, f"{prefix}{key}.")
        elif below not in (None, [], ""):
            lines.append((f"{prefix}{key}", _listed(below)))
    return lines


def common_identity(runs: Sequence[ShownRun]) -> dict[str, Any]:
    """Return what all runs were made from alike, their options apart."""
    identities = [run.identity for run in runs if run.identity]
    first = identities[0] if identities else {}
    return {key: first[key] for key in first if key != "student" and all(i.get(key) == first[key] for i in identities)}


def identity_text(identity: dict[str, Any], told: dict[str, Any]) -> str:
    """Return what a run was made from as JSON, its options and what is told already apart; "" if that is all."""
    left = {key: value for key, value in identity.items() if key != "student" and key not in told}
    return json.dumps(left, indent=2) if left else ""


def _listed(value: Any) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return str(value)
    shown = ", ".join(map(str, value[:40]))
    return shown if len(value) <= 40 else f"{shown}, … ({len(value)} in all)"


def _figure(name: str, written: Callable[[Any], str]) -> Callable[[ShownRun], Cell]:
    return lambda run: Cell(written(run.figures[name]), run.figures[name])


def _agreement(agreements: dict[str, float]) -> Callable[[ShownRun], Cell]:
    def cell(run: ShownRun) -> Cell:
        value = run.figures["agreement"]
        value = agreements.get(run.name) if value is None else value
        return Cell(percent(value), value)

    return cell


def _is_equal(behind: tuple[float, float] | None) -> bool:
    return behind is not None and behind[0] <= behind[1]  # within its noise


def _behind(contents: Contents) -> Callable[[ShownRun], Cell]:
    found = {} if contents.comparison is None else contents.comparison.behind

    def cell(run: ShownRun) -> Cell:
        if run.name not in found or run.name == next(iter(found)):  # the best is not behind itself
            return Cell("", None)
        difference, half = found[run.name]
        return Cell(f"{100 * difference:.2f} ± {100 * half:.2f}", difference)

    return cell


def _option(name: str) -> Callable[[ShownRun], Cell]:
    def cell(run: ShownRun) -> Cell:
        text = run.options.get(name)
        try:
            # sorted as a number where it is one
            return Cell(NONE if text is None else text, None if text is None else float(text))
        except ValueError:
            return Cell(str(text), text)

    return cell


def _held_rows(run: ShownRun) -> Cell:
    rows = run.rows_of("validation")
    return Cell(rows or NONE, rows)
