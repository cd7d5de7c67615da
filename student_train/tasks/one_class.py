"""What tasks have in common that ask for the class of a row: it is its only site. B rows of a batch, C classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from student_train.students import Student
from student_train.tasks.base import StudentTask


class OneClassStudent(StudentTask):
    """All logits of a batch are made at once."""

    way = "rows"

    def tried_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return input_shape

    def answer(self, student: Student, inputs: Tensor) -> Tensor:
        logits_BC: Tensor = student(inputs)
        return logits_BC

    def refuse_coupling(self, student: str, dataset: str, losses: Sequence[str]) -> None:
        return  # all rows of a batch are there at once
