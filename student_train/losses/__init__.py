"""The losses, by the name that a job file gives them. Each file holds one, with what it needs from the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from student_train.losses import hint, kd, labels
from student_train.needs import Needs, Shapes


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss: what its term in the job needs, and the term itself, from (Outputs, Supervision) to a scalar."""

    needs: Callable[[Any], Needs]
    term: Callable[[Any, Shapes], nn.Module]


LOSSES: dict[str, Loss] = {
    "labels": Loss(labels.needs, labels.LabelsLoss),
    "kd": Loss(kd.needs, kd.KdLoss),
    "hint": Loss(hint.needs, hint.HintLoss),
}
