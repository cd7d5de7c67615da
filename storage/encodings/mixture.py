"""Several teachers as one: a mixture of their distributions, with weights of its own for each row.

Shapes: B rows, C classes, M teachers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from storage.encodings.support import NEVER, Pair, Support, mix_supports
from storage.encodings.targets import OneTeacher, SoftTargets, SparseTargets, dense_others_pair


@dataclass(frozen=True, slots=True)
class MixedTargets(SoftTargets):
    """Σ w p, of teachers that share their classes.

    Exact if all are dense. Sparse ones are mixed over all classes that any of them keeps; what a teacher leaves for the
    others is spread evenly over them, so that every sum is exact. A dense one among them makes the mixture dense.

    Attributes:
        teachers: M of them.
        weights_BM: of each in each row; they sum to 1. One with weight 0 adds neither classes nor mass.
    """

    teachers: tuple[OneTeacher, ...]
    weights_BM: Tensor

    def pair(self, student_BC: Tensor, temperature: float) -> Pair:
        supports = self._supports(temperature)
        if supports is not None:
            return mix_supports(supports, self._log_weights).pair(student_BC, temperature)
        return Pair(self.log_p(temperature), torch.log_softmax(student_BC.float() / temperature, dim=1))

    def others_pair(self, student_BC: Tensor, labels_B: Tensor, temperature: float) -> Pair:
        supports = self._supports(temperature, labels_B)
        if supports is not None:
            return mix_supports(supports, self._log_weights).others_pair(student_BC, labels_B, temperature)
        return dense_others_pair(self.log_p(temperature), student_BC, labels_B, temperature)

    def label_log_p(self, labels_B: Tensor, temperature: float) -> Tensor:
        each_BM = torch.stack([teacher.label_log_p(labels_B, temperature) for teacher in self.teachers], dim=1)
        return (each_BM + self._log_weights).logsumexp(dim=1)

    def log_p(self, temperature: float) -> Tensor:
        each = [
            teacher.log_p(temperature) + log_w_B[:, None]
            for teacher, log_w_B in zip(self.teachers, self._log_weights.unbind(1), strict=True)
        ]
        return torch.stack(each).logsumexp(dim=0)

    @property
    def _log_weights(self) -> Tensor:
        return self.weights_BM.log().clamp(min=2 * NEVER)

    def _supports(self, temperature: float, labels_B: Tensor | None = None) -> list[Support] | None:
        """Return what each teacher keeps, with the label if one is given; None if one of them is dense."""
        if not all(isinstance(teacher, SparseTargets) for teacher in self.teachers):
            return None
        sparse = [cast("SparseTargets", teacher) for teacher in self.teachers]
        supports = [teacher.support(temperature) for teacher in sparse]
        if labels_B is None:
            return supports
        label_log_p = [teacher.label_log_p(labels_B, temperature) for teacher in sparse]
        return [each.naming(labels_B, log_p_B) for each, log_p_B in zip(supports, label_log_p, strict=True)]
