"""The page's pictures, drawn.

Each has a few highlighted students in colours of their own, the same in every picture, and the rest faintly behind
them. Legends are the page's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import polars as pl
from matplotlib.ticker import FuncFormatter, MaxNLocator

from student_train.comparing.effects import Effect
from student_train.comparing.figures import Gain, interval
from student_train.report.canvas import COLOURS, FAINT, TEACHER_COLOUR, canvas, data_uri, percents, plain
from student_train.report.measures import OUTCOMES, Calibration, pareto_front

BOTH_RIGHT = OUTCOMES[0]
# Tol's; where both are right there is no bar
OUTCOME_COLOURS = dict(zip(OUTCOMES[1:], ("#882255", "#88CCEE", "#8d939b", "#d5d9de"), strict=True))
INK_ON = dict.fromkeys((OUTCOMES[1], OUTCOMES[3]), "#ffffff")  # white on dark bars
MOST_CURVE_POINTS = 200  # of one curve; a wider screen shows no more
CLOSE_DOTS = 18.0  # of the canvas: less, and two numbers would lie on each other
EFFECTS_A_ROW = 4
MOST_TICKS = 6  # of such a narrow panel
FIRM_ROWS = 10  # of a bin of confidences that a line goes through


TEACHER_LINE: dict[str, Any] = {"color": TEACHER_COLOUR, "linestyle": (0, (5, 3)), "linewidth": 1.1}
FAR = 0.6  # of what the students span; a teacher that is further off is told in words, or they would be one line


Along = Literal["epoch", "step"]  # a column of a history


class Curve(NamedTuple):
    """A student's evaluations; `colour` None draws it faintly."""

    history: pl.DataFrame
    colour: str | None


class Point(NamedTuple):
    """A student with weights: what it costs and what it gains, `low` to `high` being noise."""

    name: str
    cost: float
    gain: float
    low: float
    high: float
    colour: str | None


Drawn = TypeVar("Drawn", Curve, Point)


@dataclass(frozen=True)
class Panel:
    """One curve for each student.

    Attributes:
        column: of the history.
        title: of the panel.
        percent: whether it is a share.
        teacher: the teacher's value, if it is known.
    """

    column: str
    title: str
    percent: bool = False
    teacher: float | None = None


def learning_curves(curves: Sequence[Curve], panels: Sequence[Panel], along: Along = "epoch") -> str:
    """Return panels of curves over epochs or steps; the teacher is a dashed line."""
    with canvas(3.1, len(panels)) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=True):
            for curve in _best_last(curves):
                _curve(axis, curve, panel.column, along)
            if not panel.percent:  # a student that diverges would leave the others one line
                _fit(axis, [curve.history[panel.column] for curve in curves if curve.colour is not None])
            _teacher_line(axis, panel.teacher, percent=panel.percent)
            axis.set_title(panel.title)
            axis.set_xlabel(along)
            several = axis.get_xlim()[1] > 2  # else a part of an epoch is all there is
            axis.xaxis.set_major_locator(MaxNLocator(integer=bool(several), nbins=6))
            if panel.percent:
                axis.yaxis.set_major_formatter(percents())
        return data_uri(figure)


def effects(of: Sequence[Effect], gain: Gain, teacher: float | None) -> str:
    """Return a panel for each swept key: the figure at its values, faint lines for settings alike but for it."""
    rows = -(-len(of) // EFFECTS_A_ROW)
    with canvas(0.4 + 2.4 * rows, EFFECTS_A_ROW, rows=rows) as (figure, axes):
        known = [value for effect in of for line in effect.lines for value in line if value is not None]
        for axis, effect in zip(axes, of, strict=False):
            for line in effect.lines:
                places = [place for place, value in enumerate(line) if value is not None]
                axis.plot(places, [line[place] for place in places], "o-", color=FAINT, markersize=2.5, linewidth=0.9)
            places = [place for place, value in enumerate(effect.means) if value is not None]
            means = [effect.means[place] for place in places]
            axis.plot(places, means, "o-", color=COLOURS[0], markersize=5, linewidth=2)
            told = range(0, len(effect.values), -(-len(effect.values) // MOST_TICKS))
            axis.set_xticks(told, [plain(effect.values[place], 14) for place in told], fontsize=8)
            axis.set_xlim(-0.35, len(effect.values) - 0.65)
            axis.set_title(plain(effect.varied.title, 40))
            pad = 0.08 * (max(known) - min(known)) or 0.01
            axis.set_ylim(min(known) - pad, max(known) + pad)  # one scale, so that keys can be compared
            if teacher is not None and _is_near(axis, teacher):  # else there is no room to say where it is
                axis.axhline(teacher, **TEACHER_LINE)
            if gain.share:
                axis.yaxis.set_major_formatter(percents())
        for axis in axes[len(of) :]:
            axis.set_axis_off()
        return data_uri(figure)


def trade_offs(panels: Mapping[str, Sequence[Point]], gain: Gain, teacher: float | None) -> str:
    """Return a panel of gain over each cost, on a logarithmic axis, with the points that no other beats in both."""
    with canvas(3.7, len(panels)) as (figure, axes):
        for axis, (cost, points) in zip(axes, panels.items(), strict=True):
            for point in _best_last(points):
                colour, bold = point.colour or FAINT, point.colour is not None
                if bold:
                    axis.plot([point.cost] * 2, [point.low, point.high], color=colour, linewidth=1, alpha=0.7)
                axis.plot(point.cost, point.gain, "o", color=colour, markersize=6 if bold else 4)
            axis.margins(y=0.12)
            _teacher_line(axis, teacher, percent=gain.share)
            _cost_axis(axis, [point.cost for point in points])
            if gain.share:
                axis.yaxis.set_major_formatter(percents())
            axis.set_title(f"{gain.name} against {cost}")
            axis.set_xlabel(cost)
            _front(axis, points, gain.sign)
        return data_uri(figure)


def calibration(of: Sequence[tuple[Calibration, str]]) -> str:
    """Return reliability, the size of a point being the share of rows that it stands for, and where confidences lie."""
    with canvas(3.6, 2, width_ratios=(1, 1.25)) as (figure, (left, right)):
        left.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
        for found, colour in of:
            x, y, share = (found.bins[name].to_numpy() for name in ("confidence", "accuracy", "share"))
            firm = found.bins["rows"].to_numpy() >= FIRM_ROWS
            left.plot(x[firm], y[firm], color=colour, linewidth=1.3, alpha=0.8)
            left.scatter(x, y, s=12 + 60 * share, color=colour, linewidths=0, alpha=np.where(firm, 0.9, 0.35))
            right.plot(x, share, "o-", color=colour, markersize=3.5, linewidth=1.2)
        left.set_title("how often it is right")
        left.set_xlabel("confidence")
        right.set_title("share of rows (logarithmic)")
        right.set_xlabel("confidence")
        right.set_yscale("log")
        right.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        right.yaxis.set_minor_formatter("")  # no numbers between powers of ten
        left.yaxis.set_major_formatter(percents())
        for axis in (left, right):
            axis.xaxis.set_major_formatter(percents())
            axis.set_xlim(0, 1.02)  # so that a point at 100 % is whole
        return data_uri(figure)


def agreement(shares: Sequence[tuple[str, Mapping[str, float]]], lines: Sequence[tuple[pl.DataFrame, str]]) -> str:
    """Return who is right where not both are, a bar for each student, and agreement by the teacher's confidence."""
    names = [plain(name, 44) for name, _ in shares]
    left_inches = 0.25 + 0.08 * max(map(len, names), default=0)  # about as wide as the longest name
    height = max(3.2, 1.1 + 0.3 * len(shares))  # 0.3 inches a bar
    with canvas(height, 2, left_inches=left_inches, width_ratios=(1.1, 1)) as (figure, (left, right)):
        # `or`: both may be right everywhere
        widest = max((1 - outcome[BOTH_RIGHT] for _, outcome in shares), default=1.0) or 1.0
        for row, (_, outcome) in enumerate(shares):
            start = 0.0
            for name, colour in OUTCOME_COLOURS.items():
                share = outcome[name]
                left.barh(row, share, left=start, height=0.66, color=colour, linewidth=0)
                if share >= 0.09 * widest:  # else there is no room for a number
                    where = (start + share / 2, row)
                    ink = INK_ON.get(name, "#222222")
                    left.annotate(f"{100 * share:.1f}", where, ha="center", va="center", fontsize=7.5, color=ink)
                start += share
        left.set_yticks(range(len(shares)), names)
        left.invert_yaxis()  # the best on top
        left.grid(visible=False, axis="y")
        left.xaxis.set_major_formatter(percents())
        left.set_title("rows that not both get right, by who does")
        _by_confidence(right, lines)
        return data_uri(figure)


def _by_confidence(axis: Any, lines: Sequence[tuple[pl.DataFrame, str]]) -> None:
    for table, colour in lines:
        places = range(1, len(table) + 1)
        axis.plot(places, table["agreement"], "o-", color=colour, markersize=3.5, linewidth=1.3)
        bounds = [interval(share, rows) for share, rows in zip(table["agreement"], table["rows"], strict=True)]
        axis.vlines(places, *zip(*bounds, strict=True), color=colour, linewidth=0.9, alpha=0.6)
    if lines:
        confidences = lines[0][0]["confidence"]
        axis.set_xticks(range(1, len(confidences) + 1), [f"{100 * each:.3g}" for each in confidences], fontsize=8)
    axis.set_title("agreement, by tenths of the rows")
    axis.set_xlabel("the teacher's mean confidence in a tenth, %")
    axis.yaxis.set_major_formatter(percents())


def loss_along_block(lines: Sequence[tuple[pl.DataFrame, str]], teacher: pl.DataFrame | None) -> str:
    """Return the mean loss at each place of a block of tokens."""
    with canvas(3.1, 1) as (figure, (axis,)):
        for table, colour in lines:
            axis.plot(table["at"], table["student"], color=colour)
        if teacher is not None:
            axis.plot(teacher["at"], teacher["teacher"], **TEACHER_LINE)
        axis.set_title("mean loss, nats")
        axis.set_xlabel("tokens before")
        return data_uri(figure)


def _best_last(of: Sequence[Drawn]) -> list[Drawn]:
    """Return them in the order in which they are drawn: faint ones first, beneath the others, and the best on top."""
    bold = [each for each in of if each.colour is not None]
    return [each for each in of if each.colour is None] + bold[::-1]


def _fit(axis: Any, shown: Sequence[pl.Series]) -> None:
    """Make an axis hold what is highlighted, and a margin; the rest may hang out."""
    values = [value for series in shown for value in series.drop_nulls() if isfinite(value)]
    if values:
        low, high = min(values), max(values)
        pad = 0.15 * (high - low) or 0.1 * abs(high) or 1.0  # of a flat curve, and of one at 0
        axis.set_ylim(low - pad, high + pad)


def _teacher_line(axis: Any, value: float | None, *, percent: bool) -> None:
    """Draw the teacher's value, or say where it is."""
    if value is None:
        return
    if _is_near(axis, value):
        axis.axhline(value, **TEACHER_LINE)
        return
    above = value > axis.get_ylim()[1]
    text = f"{'↑' if above else '↓'} teacher {f'{100 * value:.1f} %' if percent else f'{value:.3g}'}"
    axis.annotate(text, (1, 1.02), xycoords="axes fraction", ha="right", va="bottom")


def _is_near(axis: Any, value: float) -> bool:
    low, high = axis.get_ylim()
    return bool(low - FAR * (high - low) <= value <= high + FAR * (high - low))


def _curve(axis: Any, curve: Curve, column: str, along: Along) -> None:
    points = curve.history.select(along, column).drop_nulls()
    # NaN and infinity have no place on an axis
    points = points.filter(pl.col(column).is_finite()) if len(points) else points
    points = points.gather_every(-(-len(points) // MOST_CURVE_POINTS) or 1)
    faint = curve.colour is None
    style = {"color": FAINT, "linewidth": 0.7, "alpha": 0.55} if faint else {"color": curve.colour}
    axis.plot(points[along], points[column], marker="o" if len(points) == 1 else None, markersize=3, **style)


def _cost_axis(axis: Any, costs: Sequence[float]) -> None:
    """Make a logarithmic axis with a few plain numbers, also where all costs are alike."""
    low, high = min(costs), max(costs)
    pad = max(1.6, (high / low) ** 0.12)  # all costs may be alike
    axis.set_xscale("log")
    axis.set_xlim(low / pad, high * pad)
    # first digits of ticks that have a number: the wider the axis, the fewer
    digits = "125" if high > 3 * low else "123457" if high > 1.5 * low else "123456789"
    for which in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        which(FuncFormatter(lambda value, _: _short(value) if f"{value:e}"[0] in digits else ""))
    axis.tick_params(axis="x", which="both", labelsize=8.5, length=3, pad=3)
    axis.grid(visible=False, which="minor")


def _short(value: float) -> str:
    """Return a number with a prefix: 1500000 → 1.5M."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:g}{prefix}"
    return f"{value:g}"


def _front(axis: Any, points: Sequence[Point], sign: int) -> None:
    """Draw the Pareto front as steps, with the numbers of its points."""
    front = front_of(points, sign)
    right = axis.get_xlim()[1]
    xs, ys = [point.cost for point in front], [point.gain for point in front]
    # on to the edge: what costs more gains no more
    axis.step([*xs, right], [*ys, ys[-1]], where="post", color="#5f6368", linewidth=1, zorder=1.5)
    labels: list[tuple[Point, int, int]] = []  # numbers of points that lie too close together share one
    for number, point in enumerate(front, start=1):
        if labels and _are_close(axis, labels[-1][0], point):
            labels[-1] = (point, labels[-1][1], number)
        else:
            labels.append((point, number, number))
    for point, first, last in labels:
        axis.annotate(
            f"{first}" if first == last else f"{first}–{last}",
            (point.cost, point.gain),
            xytext=(-5, 5),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8.5,
            fontweight="bold",
        )


def _are_close(axis: Any, one: Point, other: Point) -> bool:
    (x, y), (u, v) = axis.transData.transform([(one.cost, one.gain), (other.cost, other.gain)])
    return bool(abs(x - u) < CLOSE_DOTS and abs(y - v) < CLOSE_DOTS)


def front_of(points: Sequence[Point], sign: int) -> list[Point]:
    """Return the points that no other beats in both cost and gain, the cheapest first; `sign` −1: less is more."""
    return [points[index] for index in pareto_front([(point.cost, sign * point.gain) for point in points])]
