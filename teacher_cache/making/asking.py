"""Rows at hand as a student is given them, some at a time. B rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from teacher_cache.making.subject import Subject

BATCH_ROWS = 32


def batches(subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and labels, (B, …) and int64 (B, *sites)."""
    kind = subject.blueprint.made_of
    rows = subject.rows
    for shown_B, labels_B in zip(rows.shown_B.split(BATCH_ROWS), rows.labels_B.split(BATCH_ROWS), strict=True):
        yield kind.arguments(kind.trimmed(shown_B)), labels_B
