"""How large a student is: its parameters, and the operations of its forward pass over one row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from student_train.students.build import Student


class Size(NamedTuple):
    """Of a student: operations of a forward pass over one row, and parameters."""

    flops: int
    parameters: int


def size_of_student(student: Student) -> Size:
    """Return the size of a student, which is run on a row of nothing; on the meta device that takes no memory."""
    student.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        inputs = student.blank(1, student.blueprint.input_shape)
        student.scores(student.hidden(inputs))
    return Size(counter.get_total_flops(), sum(parameter.numel() for parameter in student.parameters()))
