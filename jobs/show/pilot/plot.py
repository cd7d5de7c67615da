"""Bytes against fidelity, as a picture: imported, and matplotlib with it, only when a plot is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from storage.encodings.naming import short_name
from storage.format.objects import LocalObjects
from teacher_cache.pilot.ladder import DRAW_SETS, is_unbiased
from teacher_cache.pilot.pilot import Pilot, Trial

LEAST_KL, LEAST_DEGREES = 1e-12, 1e-3  # where logarithmic axes end; what is nearer than that counts as exact
COLOURS = {"dense": "#1b5e8c", "sparse": "#c2571a"}


def draw(pilots: Sequence[Pilot], path: Path) -> None:
    """Draw KL and angle of the gradient over bytes, a line of panels for each teacher, and save by the file's suffix.

    Raises:
        StorageFailure: the file cannot be written.
    """
    mpl.rcParams["svg.hashsalt"] = "stillroom"  # the same pilot draws the same file
    figure = Figure(figsize=(11, 4.6 * len(pilots)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(pilots), 2, squeeze=False)
    for (left, right), pilot in zip(axes, pilots, strict=True):
        left.set_ylabel("mean KL(dense‖decoded), nat")
        right.set_ylabel("angle of the student's gradient to dense, T = 1, degrees")
        figure.canvas.draw()  # where names go depends on where the axes are
        _panel(left, [(t, max(t.fidelity.kl, LEAST_KL)) for t in pilot.trials if t.fidelity.kl is not None], pilot)
        _panel(right, [(t, max(t.fidelity.gradients[1.0].degrees, LEAST_DEGREES)) for t in pilot.trials], pilot)
        left.axhline(max(pilot.max_kl, LEAST_KL), color="#888888", linestyle=":", linewidth=1)
        left.annotate(
            f"max_kl = {pilot.max_kl:g}",
            (0.995, max(pilot.max_kl, LEAST_KL)),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color="#666666",
        )
        left.set_title(f"{pilot.teacher} over {', '.join(pilot.datasets)}: {pilot.num_classes} classes", fontsize=10)
        if any(is_unbiased(trial.encoding) for trial in pilot.trials):
            right.set_title(f"hollow: unbiased, mean of {DRAW_SETS} sets of draws", fontsize=10)
    drawn, suffix = BytesIO(), path.suffix.lower()
    figure.savefig(drawn, dpi=130, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
    LocalObjects(path.parent).put(path.name, drawn.getvalue())  # whole or not at all


def _panel(axes: Any, points: list[tuple[Trial, float]], pilot: Pilot) -> None:
    """Draw encodings over bytes on logarithmic axes, each with its name."""
    for trial, value in points:
        colour = COLOURS[trial.encoding.kind]
        axes.plot(
            trial.bytes_per_row,
            value,
            marker="*" if trial == pilot.recommended else "o",
            markersize=12 if trial == pilot.recommended else 6,
            markerfacecolor="white" if is_unbiased(trial.encoding) else colour,
            markeredgecolor=colour,
            linestyle="none",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.2, y=0.1)
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(_plain_ticks(points))
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.set_xlabel(f"bytes of a {pilot.unit}, as stored")
    axes.grid(which="major", alpha=0.25)
    _name_points(axes, points)


def _plain_ticks(points: list[tuple[Trial, float]]) -> FuncFormatter:
    """Return what writes bytes at some ticks of a logarithmic axis: 1, 2, 5, and more where there is room."""
    sizes = [trial.bytes_per_row for trial, _ in points]
    first_digits = "125" if max(sizes) > 20 * min(sizes) else "123457"
    return FuncFormatter(lambda value, _place: f"{value:g}" if f"{value:e}"[0] in first_digits else "")


def _name_points(axes: Any, points: list[tuple[Trial, float]]) -> None:
    """Write each name beside its point, on the side where it covers least of other points and names."""
    renderer = axes.figure.canvas.get_renderer()
    axes.autoscale_view()
    where = axes.transData.transform([(trial.bytes_per_row, value) for trial, value in points])
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in where]
    for trial, value in points:
        best: tuple[float, Any] | None = None
        for x, y, ha, va in (
            (9, 0, "left", "center"),
            (0, 8, "center", "bottom"),
            (0, -8, "center", "top"),
            (-9, 0, "right", "center"),
            (7, 9, "left", "bottom"),
            (7, -9, "left", "top"),
        ):
            text = axes.annotate(
                short_name(trial.encoding).removeprefix("sparse "),
                (trial.bytes_per_row, value),
                xytext=(x, y),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=8,
            )
            box = text.get_window_extent(renderer)
            covered = sum(_area(Bbox.intersection(box, other)) for other in taken)
            covered += _area(box) - _area(Bbox.intersection(box, axes.bbox))  # what hangs out of the panel
            if best is None or covered < best[0]:
                if best is not None:
                    best[1].remove()
                best = (covered, text)
            else:
                text.remove()
        assert best is not None
        taken.append(best[1].get_window_extent(renderer))


def _area(box: Any) -> float:
    return 0.0 if box is None else float(box.width * box.height)
