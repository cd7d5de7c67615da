"""Numbers of a row, such as a price: a vector whose truth the dataset has. B rows, T numbers of a row."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from storage.errors import in_units
from storage.tasks.base import Answered
from storage.tasks.vector import Vector

if TYPE_CHECKING:
    from storage.format.specs import DatasetSpec


HARDLY = 0.1  # of R²: a fit to noise has some too


class Regression(Vector):
    """A row's label is T numbers, in the column `target` of the sample table; its answer is as many."""

    name = "regression"  # type: ignore[assignment]
    inputs = ("values",)
    numbers: ClassVar[bool] = True
    figure = "rmse"
    no_better = "no better than telling the mean"
    look_at = "the unit of its numbers, at the order of columns and at the teacher's weights"

    def num_classes(self, dataset: DatasetSpec) -> int:
        return len(dataset.source["target"])

    def described(self, dataset: DatasetSpec) -> str:
        return f"numbers: {', '.join(dataset.source['target'])}"

    def standing(
        self, answered: Answered, num_classes: int, labels: Sequence[int], deviations: Sequence[float] = ()
    ) -> tuple[str, bool]:
        squares = answered.nats / answered.labelled
        unit = "their unit" if num_classes == 1 else "their units, all as one"
        text = f"RMSE {in_units(sqrt(squares))} of {answered.labelled:,} rows with numbers, in {unit}"
        of_mean = sum(each**2 for each in deviations) / max(1, len(deviations))
        if not of_mean:  # one number in all rows, or nobody knows
            return text, False
        r2 = 1 - squares / of_mean
        return f"{text}; {in_units(sqrt(of_mean))} by telling the mean alone (R² {r2:.3f})", r2 < HARDLY
