"""What every task answers to those who train, measure and show students.

Shapes: B rows of a batch, `sites` the axes of a row's sites (storage.tasks), C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from storage.tasks import Task
from student_train.students import Student

# How a student is stepped and measured: all logits of whole rows at once, or a part of the sites at a time, because
# the logits of all sites of a batch might not fit. `stepping.ways` has both.
Way = Literal["rows", "sites"]


class StudentTask(ABC):
    """The students' half of a task.

    Attributes:
        asked: the other half.
        way: how its students are stepped and measured.
        unsteady: why steps on it cannot be recorded; None: batches of one kind are all of one shape.
    """

    asked: ClassVar[Task]
    way: ClassVar[Way]
    unsteady: ClassVar[str | None] = None

    @abstractmethod
    def tried_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of rows of which all logits are sure to fit, to try a student on."""

    @abstractmethod
    def answer(self, student: Student, inputs: Tensor) -> Tensor:
        """Return the logits (B, C) with which a student answers each row once, as those do who use it."""

    @abstractmethod
    def refuse_coupling(self, student: str, dataset: str, losses: Sequence[str]) -> None:
        """Raise BadRequest if losses that compare rows with each other cannot be computed.

        Args:
            student: its name.
            dataset: likewise.
            losses: those of its losses that do, one at least.
        """
