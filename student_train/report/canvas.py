"""What all pictures share: colours, style, the canvas. SVG in data URIs, so that no name in them is ever markup.

Colours are Okabe and Ito's, and Tol's for outcomes, which colour-blind readers tell apart.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

WIDTH_INCHES, GAP_INCHES = 11.2, 0.72  # of a page's pictures; between two panels
RIGHT_INCHES, BOTTOM_INCHES, TOP_INCHES = 0.12, 0.48, 0.3  # margins
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # of highlighted students, the best first
TEACHER_COLOUR = "#222222"
FAINT = "#b4bac2"
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": "#222222",
    "text.parse_math": False,  # a "$" in a name is a "$"
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": "#444444",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8eaed",
    "grid.linewidth": 0.8,
    "xtick.color": "#9aa0a6",
    "ytick.color": "#9aa0a6",
    "xtick.labelcolor": "#444444",
    "ytick.labelcolor": "#444444",
    "lines.linewidth": 1.6,
    "svg.fonttype": "path",  # outlines, whatever fonts a reader has
    "svg.hashsalt": "stillroom",  # the same runs draw the same file
}


@contextmanager
def canvas(
    height_inches: float,
    panels: int,
    *,
    rows: int = 1,
    left_inches: float = GAP_INCHES,
    width_ratios: Sequence[float] | None = None,
) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure as wide as the page, and its panels, `rows` of so many each; draw and `data_uri` it within.

    Margins are given, for finding them out takes as long as all the rest.
    """
    width_inches = WIDTH_INCHES - left_inches - RIGHT_INCHES - (panels - 1) * GAP_INCHES
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its stub wants a literal of each name
        # not by pyplot, which keeps figures of its own
        figure = Figure((WIDTH_INCHES, height_inches))
        FigureCanvasSVG(figure)
        figure.subplots_adjust(
            left=left_inches / WIDTH_INCHES,
            right=1 - RIGHT_INCHES / WIDTH_INCHES,
            bottom=BOTTOM_INCHES / height_inches,
            top=1 - TOP_INCHES / height_inches,
            hspace=(BOTTOM_INCHES + TOP_INCHES) * rows / height_inches,
            wspace=GAP_INCHES * panels / width_inches,  # of a panel's mean width
        )
        yield figure, figure.subplots(rows, panels, squeeze=False, width_ratios=width_ratios).flatten()


def data_uri(figure: Figure) -> str:
    """Return a figure as an SVG in a data URI."""
    sink = BytesIO()
    # no time of day: the same runs draw the same file
    figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(sink.getvalue()).decode()}"


def percents() -> PercentFormatter:
    """Return what writes shares at ticks."""
    return PercentFormatter(1, symbol=" %")


def plain(text: str, most: int = 28) -> str:
    """Return text that a picture can hold: printable, in one line, not too long."""
    shown = "".join(letter if letter.isprintable() else "·" for letter in text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
