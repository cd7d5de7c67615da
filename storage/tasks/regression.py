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


class Regression(Vector):
    """A row's label is T numbers, in the column `target` of the sample table; its answer is as many."""

    name = "regression"  # type: ignore[assignment]
    inputs = ("values",)
    numbers: ClassVar[bool] = True
    figure = "rmse"
    look_at = "the unit of its numbers, at the order of columns and at the teacher's weights"

    def num_classes(self, dataset: DatasetSpec) -> int:
        return len(dataset.source["target"])

    def described(self, dataset: DatasetSpec) -> str:
        return f"numbers: {', '.join(dataset.source['target'])}"

    def standing(self, answered: Answered, num_classes: int, labels: Sequence[int]) -> tuple[str, bool]:
        off = sqrt(answered.nats / answered.labelled)
        return f"RMSE {in_units(off)} of {answered.labelled:,} rows with numbers, in their unit", False
