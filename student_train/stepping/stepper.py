"""What takes steps: one student alone (`alone.py`), or many as one program (`stack/`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from student_train.feed.batches import Batch
from student_train.stepping.gradients.rows import Step
from student_train.stepping.state import TrainState


class Stepper(Protocol):
    """M states that take their steps together, and all that is done with them meanwhile.

    Attributes:
        states: what steps change.
    """

    states: list[TrainState]

    def step(self, batches: Sequence[Batch], rates: Sequence[float], number: int, *, measure_shares: bool) -> Step:
        """Let every student take a step.

        Args:
            batches: of the same rows, one for each view that is seen.
            rates: learning rates, M.
            number: of the step in the whole run, from 0.
            measure_shares: measure each term's share of the gradient, at the cost of a backward pass for each.
        """

    @property
    def refusal(self) -> str | None:
        """Return why steps are not recorded although they were to be; None: they are, or were not to be."""

    def evaluating(self, on: bool) -> None:
        """Put what is exported into evaluation mode, or the students back into training mode."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Return what the exported students make of one batch of inputs, (M, B, C) float32."""

    def synchronise(self) -> None:
        """Make batch norm's statistics the mean of all processes', before they are measured."""

    def release(self) -> None:
        """Let others take the states."""
