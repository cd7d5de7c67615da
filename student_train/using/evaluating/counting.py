"""What is counted of answers beside the figures of training: top-5, each class, and which is taken for which.

B rows of a batch, C classes of the student.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import torch
from torch import Tensor

from student_train.feed.selection import NO_CLASS
from student_train.running.measuring.evaluate import macro_f1

TOP = 5
MOST_PAIRED = 2000  # classes of which every pair is counted: 32 MB


class Counts:
    """Counts of rows that have a label.

    Args:
        classes: names of the student's.
        num_classes: C.
    """

    def __init__(self, classes: tuple[str, ...], num_classes: int):
        self.classes = classes or tuple(str(number) for number in range(num_classes))
        self.labelled = self.within_top = 0
        paired = num_classes <= MOST_PAIRED
        self._pairs_CC = torch.zeros(num_classes, num_classes, dtype=torch.int64) if paired else None
        self._right_said_there_3C = torch.zeros(3, num_classes, dtype=torch.int64)

    def add(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Count a batch; rows with NO_CLASS count for nothing."""
        known_B = labels_B != NO_CLASS
        logits_BC, labels_B = logits_BC[known_B].cpu(), labels_B[known_B].cpu()
        if not len(labels_B):
            return
        num_classes = logits_BC.shape[1]
        top_BK = logits_BC.topk(min(TOP, num_classes), dim=1).indices
        said_B = logits_BC.argmax(1)
        self.labelled += len(labels_B)
        self.within_top += int((top_BK == labels_B[:, None]).any(1).sum())
        right_B = said_B == labels_B
        for place, each_B in enumerate((labels_B[right_B], said_B, labels_B)):
            self._right_said_there_3C[place] += torch.bincount(each_B, minlength=num_classes)
        if self._pairs_CC is not None:
            pairs = torch.bincount(labels_B * num_classes + said_B, minlength=num_classes**2)
            self._pairs_CC += pairs.reshape(num_classes, num_classes)

    @property
    def top_5(self) -> float | None:
        """Return the share of rows whose label is among the five likeliest; None where there are no more classes."""
        few = len(self.classes) <= TOP
        return None if few or not self.labelled else self.within_top / self.labelled

    @property
    def macro_f1(self) -> float | None:
        """Return the mean F1 of the classes that any row has."""
        return macro_f1(*self._right_said_there_3C.double())

    def by_class(self) -> pl.DataFrame:
        """Return `class`, `rows`, `precision`, `recall` and `f1` of each class; null: a share of nothing."""
        right_C, said_C, there_C = self._right_said_there_3C.tolist()
        return pl.DataFrame(
            {
                "class": self.classes,
                "rows": there_C,
                "precision": [_share(right, said) for right, said in zip(right_C, said_C, strict=True)],
                "recall": [_share(right, there) for right, there in zip(right_C, there_C, strict=True)],
                "f1": [
                    _share(2 * right, said + there) if there else None
                    for right, said, there in zip(right_C, said_C, there_C, strict=True)
                ],
            },
            schema={
                "class": pl.String,
                "rows": pl.Int64,
                "precision": pl.Float64,
                "recall": pl.Float64,
                "f1": pl.Float64,
            },
        )

    def confusion(self) -> dict[str, dict[str, int]] | None:
        """Return how many rows of each class were said to be of which, without noughts; None: too many classes."""
        if self._pairs_CC is None:
            return None
        found: dict[str, dict[str, int]] = {}
        for label, said in self._pairs_CC.nonzero().tolist():
            found.setdefault(self.classes[label], {})[self.classes[said]] = int(self._pairs_CC[label, said])
        return found

    def mistakes(self, most: int = 10) -> pl.DataFrame | None:
        """Return `class`, `taken_for` and `rows` of the most frequent mistakes; None: too many classes."""
        pairs: dict[str, dict[str, int]] | None = self.confusion()
        if pairs is None:
            return None
        found: list[Any] = [(a, b, rows) for a, said in pairs.items() for b, rows in said.items() if a != b]
        schema = {"class": pl.String, "taken_for": pl.String, "rows": pl.Int64}
        order = ["rows", "class", "taken_for"]
        return pl.DataFrame(found, schema=schema, orient="row").sort(order, descending=[True, False, False]).head(most)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
