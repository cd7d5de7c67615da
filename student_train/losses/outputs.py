"""What losses look at of a student: its outputs for a batch, and the shapes that are known before the first step."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from student_train.feed.batches import ArrayKey


@dataclass(frozen=True, slots=True)
class Outputs:
    """A student's logits (B, C) at the sites that losses see, and the layers that its objective asked for."""

    logits_BC: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes without B, known before the first step: of the student's layers and of teachers' features."""

    layers: dict[str, tuple[int, ...]]
    features: dict[ArrayKey, tuple[int, ...]]
