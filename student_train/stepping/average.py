"""The exponential moving average of a student's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from student_train.students import Student
from student_train.students.tensors import own_tensors


class WeightAverage:
    """A copy of a student whose weights follow it slowly; buffers such as batch norm's statistics are averaged too.

    Args:
        student: the one that is trained.
        decay: d of average ← d·average + (1 − d)·weights; the first steps use (1 + step) / (10 + step) while that is
            less, so that the random start is forgotten.

    Source: Polyak & Juditsky 1992; the ramp is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, student: Student, decay: float):
        self.decay = decay
        # what is frozen is shared, not copied
        frozen = {id(parameter): parameter for parameter in student.parameters() if not parameter.requires_grad}
        self.student = copy.deepcopy(student, frozen).eval().requires_grad_(False)
        self.bind(student)

    def bind(self, student: Student) -> None:
        """Follow this student from now on; needed again when its weights, or the average's, move to other memory."""
        pairs = list(zip(_tensors(self.student), _tensors(student), strict=True))
        self._averages = [average for average, _ in pairs if average.is_floating_point()]
        self._weights = [weight for average, weight in pairs if average.is_floating_point()]
        self._others = [(average, weight) for average, weight in pairs if not average.is_floating_point()]

    def weight_of(self, step: int) -> float:
        """Return how much of the weights after `step`, counted from 0, goes into the average."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the student after `step`, counted from 0."""
        # a few kernels, whatever the number of tensors
        torch._foreach_lerp_(self._averages, self._weights, self.weight_of(step))
        for average, weight in self._others:
            average.copy_(weight)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return all tensors of a module's state, which stay the same objects while it is trained."""
    return list(own_tensors(module).values())  # each once: what two layers share is to follow once
