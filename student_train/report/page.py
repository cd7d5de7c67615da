"""The page as HTML: one file that opens offline, asks nothing of any network, and runs no script but its own.

Names, labels and text are hostile: the template escapes all of them, and the page's own policy lets a browser run only
the script whose digest it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from statistics import fmean
from typing import Any, Generic, NamedTuple, TypeVar

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from storage.errors import printable
from student_train.comparing.compared import Compared
from student_train.comparing.figures import NONE, Gain, in_units, short
from student_train.comparing.headline import alike, behind, headline, named
from student_train.comparing.noise import Difference
from student_train.comparing.runs import ShownRun, Unit
from student_train.comparing.settings import Setting, Varied
from student_train.options.sections import told
from student_train.report.apart import Cell, by_dataset, by_teacher, nats, number, percent, perplexity
from student_train.report.caches import dense_bytes
from student_train.report.canvas import COLOURS, TEACHER_COLOUR
from student_train.report.contents import FEW_STUDENTS, Contents
from student_train.report.drawings import MOST_BARS, MOST_EFFECTS, draw_all, reliabilities, tenths, trade_offs
from student_train.report.figures import OUTCOME_COLOURS, front_of

TIPS = {
    "accuracy": "share of held rows whose top class is the label",
    "cross_entropy": "cross-entropy to the labels of the held rows, nats",
    "spearman": "rank correlation of the cosines of pairs of held rows, the student's and the teacher's",
    "rmse": "root mean squared error over held rows, in the number's unit; of several each in its own deviations",
    "agreement": "share of held rows whose top class is the teacher's",
    "perplexity": "exp of the cross-entropy to the labels of the held rows",
    "kl": "KL divergence of the student from its teacher on the held rows, nats",
}
R2 = "1 − squared errors / spread of the true numbers around their mean"
SECONDS = "seconds of training and evaluation of the pass that trained it, which all its students share"
# What the figure by which they are compared is called where it is one of many, and what is the same of all.
OWN_TITLES = {"accuracy": "accuracy", "spearman": "Spearman", "cross_entropy": "loss", "agreement": "agreement"}
OWN_TITLES |= {"rmse": "RMSE"}
TITLES = {"parameters": "parameters", "epochs": "epochs", "steps": "steps", "seconds": "pass, s"}
Row = TypeVar("Row")
UNITS: tuple[Unit, ...] = ("epochs", "steps")  # in one of which a job says how long
MOST_WARNINGS = 6  # of what is near chance
MOST_JOBS = 10  # that are seen at once


class Column(NamedTuple, Generic[Row]):
    """A column of a table of settings or of students; `reference` is the figure of a teacher or of chance in it."""

    title: str
    tip: str
    cell: Callable[[Row], Cell]
    numeric: bool = True
    reference: str | None = None


def render(contents: Contents) -> str:
    """Return the page."""
    script, style = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    # strict: a name that is missing is an error, not a blank
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {"percent": percent, "number": number, "si": short, "facts": facts}
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # as the page's policy names it
    costs = trade_offs(contents.first, contents.tops, independent=contents.task.independent)
    agreements = {} if contents.comparison is None else contents.comparison.agreements
    return template.render(
        c=contents,
        pictures=draw_all(contents.first, contents.colours, contents.tops, contents.comparison),
        headline=headline(contents.first),
        boards=[
            (each, board(each, agreements), references(each), by_dataset(each), by_teacher(each))
            for number, each in enumerate(contents.compared)
            if number == 0 or each.rows is not None
        ],
        alike=alike(contents.first),
        students=students(contents, agreements),
        shown=contents.shown,
        outcome_colours=OUTCOME_COLOURS,
        teacher_colour=TEACHER_COLOUR,
        most_bars=MOST_BARS,
        most_jobs=MOST_JOBS,
        few_students=FEW_STUDENTS,
        identity=identity_text,
        reliabilities=reliabilities(contents.comparison, contents.colours) if contents.comparison else [],
        fronts={cost: front_of(points, contents.gain.sign) for cost, points in costs.items()},
        smallest=smallest_equal(contents.first),
        common=common_identity(contents.runs),
        named=named,
        first_colour=COLOURS[0],
        most_effects=MOST_EFFECTS,
        most_warnings=MOST_WARNINGS,
        tenths=contents.comparison is not None and bool(tenths(contents.comparison, contents.colours)),
        behind=behind,
        dense_bytes=dense_bytes,
        devices=sorted({run.record.device for run in contents.main if run.record is not None}),
        version=version("stillroom"),
        # Of this package alone, whose files hold no names; all else is escaped.
        script=Markup(script),  # noqa: S704
        style=Markup(style),  # noqa: S704
        script_digest=digest,
    )


def _shown(value: Any) -> Any:
    """Return a value as the page shows it: no name of a sample or class turns the text around it."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def board(found: Compared, agreements: Mapping[str, float]) -> list[Column[Setting]]:
    """Return the columns of settings that say something of at least one, and are not the same of all.

    Args:
        found: the settings.
        agreements: with the teacher, of students that had none too.
    """
    gain, told = found.gain, alike(found)
    several = any(len(setting.runs) > 1 for setting in found.settings)
    left_out = {OWN_TITLES[gain.column], *(TITLES[name] for name in told)}
    if not several:
        left_out |= {"n", "best"}
    columns: list[Column[Setting]] = [
        *(_varied(each, found) for each in found.varied),
        Column("n", "seeds that count", lambda s: _count(len(s.values(gain.column)))),
        Column(
            f"{gain.name}, {gain.unit}",
            TIPS[gain.column] + ("; ± is the deviation over seeds" if several else ""),
            lambda s: Cell(gain.with_deviation(s.mean(gain.column), s.deviation(gain.column)), s.mean(gain.column)),
            reference=gain.column,
        ),
        Column("best", "the best student of it", lambda s: _best(s, gain)),
        Column("behind", f"the best, in {gain.points}, with its 95 % interval", _behind(found), reference="behind"),
        Column("macro-F1", "mean over the classes of F1, each class alike", _mean("macro_f1", percent)),
        Column("agreement", TIPS["agreement"], lambda s: _agreement_of(s, agreements)),
        Column("accuracy", TIPS["accuracy"], _mean("accuracy", percent), reference="accuracy"),
        Column("loss", TIPS["cross_entropy"], _mean("cross_entropy", number), reference="cross_entropy"),
        Column("perplexity", TIPS["perplexity"], _mean("perplexity", perplexity), reference="perplexity"),
        Column("KL, nats", _kl_tip(found.kl_over), _mean("kl", nats)),
        Column("ECE", "expected calibration error, 15 bins", _mean("calibration_error", percent)),
        Column("cosine", "mean over held rows to the teacher's vector", _mean("cosine", number)),
        Column(
            "same nearest", "share of held rows whose nearest other row is the teacher's", _mean("retrieval", percent)
        ),
        Column("R²", R2, _mean("r2", number)),
        Column("teacher's RMSE", "of the teacher beside, over the same rows", _mean("teacher_rmse", in_units)),
        Column("parameters", "trained and kept", _mean("parameters", short)),
        Column("ms/row", "latency of one row, where it was trained", _mean("latency_ms", number)),
        *(Column(unit, "that were trained", _trained(unit)) for unit in UNITS),
        Column("pass, s", SECONDS, _mean("seconds", number)),
    ]
    return [
        column
        for column in columns
        if column.title not in left_out and any(column.cell(each).value is not None for each in found.settings)
    ]


def students(contents: Contents, agreements: Mapping[str, float]) -> list[Column[ShownRun]]:
    """Return the columns of single students that say something of at least one."""
    columns: list[Column[ShownRun]] = [
        Column("seed", "of first weights and dropout", lambda run: _count(run.seed)),
        Column("accuracy", TIPS["accuracy"], _figure("accuracy", percent)),
        Column("macro-F1", "mean over the classes of F1, each class alike", _figure("macro_f1", percent)),
        Column("agreement", TIPS["agreement"], _agreement(agreements)),
        Column("loss", TIPS["cross_entropy"], _figure("cross_entropy", number)),
        Column("perplexity", TIPS["perplexity"], _figure("perplexity", perplexity)),
        Column("KL, nats", _kl_tip(contents.first.kl_over), _figure("kl", nats)),
        Column("ECE", "expected calibration error, 15 bins", _figure("calibration_error", percent)),
        Column("Spearman", TIPS["spearman"], _figure("spearman", number)),
        Column("cosine", "mean over held rows to the teacher's vector", _figure("cosine", number)),
        Column(
            "same nearest", "share of held rows whose nearest other row is the teacher's", _figure("retrieval", percent)
        ),
        Column("RMSE", TIPS["rmse"], _figure("rmse", in_units)),
        Column("R²", R2, _figure("r2", number)),
        Column("ms/row", "latency of one row, where it was trained", _figure("latency_ms", number)),
        Column("rows/s", "inference in batches, where it was trained", _figure("inference_rows_per_s", short)),
        *(Column(unit, "that were trained", _trained_of(unit)) for unit in UNITS),
        Column("pass, s", SECONDS, _figure("seconds", number)),
        Column("measured on", "held rows", _held_rows, numeric=False),
    ]
    return [column for column in columns if any(column.cell(run).value is not None for run in contents.runs)]


def references(found: Compared) -> list[tuple[str, dict[str, str]]]:
    """Return the lines of teachers and of chance: a name, and cells by `Column.reference`."""
    gain, lines = found.gain, []
    for teacher in found.teachers:
        cells = {gain.column: gain.number(teacher.figures.get(gain.column)), "behind": _interval(teacher.behind, gain)}
        others = {
            "accuracy": percent(teacher.figures["accuracy"]),
            "cross_entropy": number(teacher.figures["cross_entropy"]),
            "perplexity": perplexity(teacher.figures.get("perplexity")),
        }
        lines.append((f"teacher {teacher.name}", others | cells))
    if found.chance is not None:
        lines.append(("chance", {gain.column: gain.number(found.chance)}))
    return lines


def smallest_equal(found: Compared) -> Setting | None:
    """Return the setting of fewest parameters that cannot be told from the best, if that is another."""
    best = found.best
    if best is None or best.mean("parameters") is None:
        return None
    able = [
        setting
        for setting in found.settings
        if (less := found.behind.get(setting.name)) is not None
        and less.half is not None
        and not less.is_told
        and setting.mean("parameters")
    ]
    smallest = min(able, key=lambda setting: setting.mean("parameters") or 0, default=best)
    return smallest if (smallest.mean("parameters") or 0) < (best.mean("parameters") or 0) else None


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


def _agreement(agreements: Mapping[str, float]) -> Callable[[ShownRun], Cell]:
    def cell(run: ShownRun) -> Cell:
        value = run.figures["agreement"]
        value = agreements.get(run.name) if value is None else value
        return Cell(percent(value), value)

    return cell


def _mean(name: str, written: Callable[[Any], str]) -> Callable[[Setting], Cell]:
    return lambda setting: Cell(written(setting.mean(name)), setting.mean(name))


def _trained(unit: Unit) -> Callable[[Setting], Cell]:
    return lambda setting: Cell(number(setting.trained(unit)), setting.trained(unit))


def _trained_of(unit: Unit) -> Callable[[ShownRun], Cell]:
    def cell(run: ShownRun) -> Cell:
        value = run.figures[unit] if run.unit == unit else None
        return Cell(number(value), value)

    return cell


def _agreement_of(setting: Setting, agreements: Mapping[str, float]) -> Cell:
    found = [_agreement(agreements)(run).value for run in setting.counted]
    known = [value for value in found if isinstance(value, float)]
    mean = fmean(known) if known else None
    return Cell(percent(mean), mean)


def _kl_tip(over: Sequence[str]) -> str:
    return f"{TIPS['kl']}: {'; '.join(over)}" if over else TIPS["kl"]


def _count(value: int | None) -> Cell:
    return Cell(NONE if value is None else f"{value}", value)


def _best(setting: Setting, gain: Gain) -> Cell:
    values = setting.values(gain.column)
    best = None if not values else max(values) if gain.sign > 0 else min(values)
    return Cell(gain.number(best), best)


def _behind(found: Compared) -> Callable[[Setting], Cell]:
    def cell(setting: Setting) -> Cell:
        less = found.behind.get(setting.name)
        return Cell(_interval(less, found.gain), None if less is None else less.mean)

    return cell


def _interval(less: Difference | None, gain: Gain) -> str:
    if less is None:
        return ""
    return gain.number(less.mean) + ("" if less.half is None else f" ± {gain.number(less.half)}")


def _varied(varied: Varied, found: Compared) -> Column[Setting]:
    ranks = {order: rank for rank, order in enumerate(sorted({varied.order(each) for each in found.settings}))}

    def cell(setting: Setting) -> Cell:
        text = varied.text(setting)
        return Cell(NONE, None) if text is None else Cell(text, ranks[varied.order(setting)])

    return Column(varied.title, ", ".join(varied.keys), cell)


def _held_rows(run: ShownRun) -> Cell:
    rows = told(run.rows_of("validation"))
    return Cell(rows or NONE, rows or None)
