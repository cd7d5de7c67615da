"""A row has one class: it is its only site, and its label is a column of the sample table. B rows, S of a shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from storage.tasks.base import NO_LABEL, Answered, Task

if TYPE_CHECKING:
    from torch import Tensor

    from storage.format.specs import DatasetSpec
    from storage.inputs import Inputs, Stored


CLEARLY = 0.2  # of the way from chance to always right, below which a teacher is hardly better than chance


class OneClass(Task):
    """What tasks have in common that ask for the class of a row, whatever the row is made of."""

    site_name = "row"
    unlabelled_sites = True
    label_array = None
    padded_classes = False
    pooled_features = True

    def num_classes(self, dataset: DatasetSpec) -> int:
        return len(dataset.classes)

    def described(self, dataset: DatasetSpec) -> str:
        return f"{len(dataset.classes)} classes"

    def sites(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        return ()

    def blank_labels(self, num_rows: int, input_shape: Sequence[int], kind: Inputs) -> dict[str, Any]:
        return {}

    def labels(self, table: pa.Table, read: Callable[[str], Stored], chosen_S: np.ndarray) -> np.ndarray:
        return np.asarray(table["label"].fill_null(NO_LABEL).to_numpy().astype(np.int64)[chosen_S])

    def site_keys(self, keys_B: Tensor, input_shape: Sequence[int]) -> Tensor:
        return keys_B

    def row_columns(self, sites: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        of_label_B = sites["label_log_probability"].masked_fill(labels < 0, float("nan"))
        return {**sites, "label_log_probability": of_label_B}

    def standing(
        self, answered: Answered, num_classes: int, labels: Sequence[int], deviations: Sequence[float] = ()
    ) -> tuple[str, bool]:
        accuracy, chance = answered.correct / answered.labelled, 1 / num_classes
        commonest = max(labels, default=0) / max(sum(labels), 1)
        beside = f"chance {chance:.1%}" + (f", the commonest class {commonest:.1%}" if labels else "")
        text = f"accuracy {accuracy:.1%} of {answered.labelled:,} labelled rows; {beside}"
        # of one class, chance is always right
        return text, num_classes > 1 and accuracy < max(chance + CLEARLY * (1 - chance), commonest)

    def chance(self, num_classes: int, labels: Sequence[int]) -> float:
        return max(1 / max(num_classes, 1), max(labels, default=0) / max(sum(labels), 1))
