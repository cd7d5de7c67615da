"""Several teachers as one: a mixture of their distributions, with weights of its own for each row.

Shapes: B rows, C classes, M teachers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from storage.targets.soft import DenseTargets, OneTeacher, SoftTargets, SparseTargets, dense_others_pair
from storage.targets.support import NEVER, Pair, Support, mix_supports


@dataclass(frozen=True, slots=True)
class MixedTargets(SoftTargets):
    """Σ w p, of teachers that share their classes.

    Exact if all are dense. Sparse ones are mixed over all classes that any of them keeps, and the others are a bucket;
    what a teacher leaves is spread evenly over the classes that it does not keep, so that every sum is exact. A dense
    one among them names as many of its likeliest classes as they keep, and nothing of it is spread.

    Attributes:
        teachers: M of them.
        weights_BM: of each in each row; they sum to 1. One with weight 0 adds neither classes nor mass.
    """

    teachers: tuple[OneTeacher, ...]
    weights_BM: Tensor

    @property
    def has_bucket(self) -> bool:
        return any(teacher.has_bucket for teacher in self.teachers)

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
        return self.weights_BM.log().clamp(min=2 * NEVER)  # of weight 0: below NEVER, and finite

    def _supports(self, temperature: float, labels_B: Tensor | None = None) -> list[Support] | None:
        """Return what each teacher says of some classes, the label among them if one is given; None if all are dense.

        Dense ones are read where any sparse one keeps a class, and where they are likeliest themselves.
        """
        named = [teacher.ids_BK for teacher in self.teachers if isinstance(teacher, SparseTargets)]
        if not named:
            return None
        widest = max(ids_BK.shape[1] for ids_BK in named)
        named += [teacher.likeliest(widest) for teacher in self.teachers if isinstance(teacher, DenseTargets)]
        named += [] if labels_B is None else [labels_B[:, None]]
        ids_BU = torch.cat(named, dim=1).sort(dim=1).values  # ascending, as a support has them
        return [
            teacher.support(temperature, labels_B)
            if isinstance(teacher, SparseTargets)
            else cast("DenseTargets", teacher).support(temperature, ids_BU)
            for teacher in self.teachers
        ]
