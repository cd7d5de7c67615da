"""The figure by which students are compared, and how figures are written."""

from __future__ import annotations

from math import inf, isfinite, sqrt
from typing import Any, NamedTuple

from storage import errors
from storage.errors import si

NONE = "–"  # of a figure that nobody knows
CONFIDENCE_95 = 1.96  # deviations of a normal distribution


class Gain(NamedTuple):
    """A figure by which students are compared.

    Attributes:
        column: of a run's figures.
        name: in words.
        share: whether it is one, and told in per cent; else in nats.
        sign: 1 where more is better, −1 where less is.
        measure: its unit where it is no share; "" for a number that has none.
    """

    column: str
    name: str
    share: bool
    sign: int
    measure: str = "nats"

    def order(self, figures: dict[str, Any]) -> float:
        """Return what the best has least of; infinite where there is no figure."""
        value = figures[self.column]
        return inf if value is None or not isfinite(value) else -self.sign * value

    def text(self, value: float | None) -> str:
        """Return a value with its unit."""
        return NONE if value is None else f"{self.number(value)}\N{NO-BREAK SPACE}{self.unit}".rstrip()

    def number(self, value: float | None, digits: int | None = None) -> str:
        """Return a value, or a difference of two, without its unit."""
        if value is None:
            return NONE
        return (
            f"{100 * value:.{2 if digits is None else digits}f}"
            if self.share
            else (f"{value:.{digits or 3}f}" if self.column != "rmse" else in_units(value))
        )

    def with_deviation(self, value: float | None, deviation: float | None) -> str:
        """Return a mean and its deviation over seeds, without a unit: 96.37 ± 0.41."""
        return self.number(value) + ("" if value is None else self.deviation_text(deviation))

    def deviation_text(self, deviation: float | None) -> str:
        """Return a deviation as it stands behind a mean."""
        return "" if deviation is None else f" ± {self.number(deviation)}"

    @property
    def unit(self) -> str:
        """Return the unit of a column."""
        return "%" if self.share else self.measure

    @property
    def points(self) -> str:
        """Return the unit of a difference."""
        return "points" if self.share else self.measure


GAINS = {
    "accuracy": Gain("accuracy", "accuracy", share=True, sign=1),
    "cross_entropy": Gain("cross_entropy", "cross-entropy", share=False, sign=-1),
    "spearman": Gain("spearman", "Spearman of pairs to the teacher's", share=False, sign=1, measure=""),
    "rmse": Gain("rmse", "root mean squared error", share=False, sign=-1, measure=""),
    "agreement": Gain("agreement", "agreement with the teacher", share=True, sign=1),
}


def short(value: float | None) -> str:
    """Return a number with three digits and a prefix."""
    return NONE if value is None else si(value)


def interval(accuracy: float, rows: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy that was measured on so many rows.

    Source: Wilson 1927; unlike the normal one it has a width where every row is right.
    """
    square = CONFIDENCE_95**2 / max(rows, 1)
    middle = (accuracy + square / 2) / (1 + square)
    half = sqrt(square * accuracy * (1 - accuracy) + square**2 / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def lasting(seconds: float | None) -> str:
    """Return a time that was measured, in the largest unit of which there are two.

    >>> [lasting(each) for each in (0.25, 90, 400, 7450.0, None)]
    ['0.25 s', '90 s', '6.67 min', '2.07 h', '–']
    """
    if seconds is None:
        return NONE
    for unit, size_s in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.3g} {unit}"
    return f"{seconds:.3g} s"


def in_units(value: float | None) -> str:
    """Return a number in the unit of what is told; of none a dash."""
    return NONE if value is None else errors.in_units(value)
