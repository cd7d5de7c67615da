"""Labels and soft targets from one softmax of the student: what two terms would each compute over all classes.

Of a vocabulary the softmax, its gradient and the sum of two gradients are a good part of a step. B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from storage.targets.soft import SparseTargets
from student_train.feed.batches import Supervision
from student_train.losses.on_targets.soft import kl_rows
from student_train.losses.outputs import Outputs
from student_train.options.terms import KdTerm, LabelsTerm, ObjectiveTerm

FEWEST_CLASSES = 512  # below, a second softmax costs less than to sort the label in among the kept classes


class Together(NamedTuple):
    """Two terms of an objective that can be computed together: places among its terms, and the teacher.

    It is where `labels` has no smoothing and `kd` one teacher and temperature 1, as the labels have.
    """

    labels: int
    kd: int
    teacher: str

    @classmethod
    def of(cls, terms: Sequence[ObjectiveTerm]) -> Together | None:
        """Return the first of either kind, if there are both."""
        labels = [i for i, term in enumerate(terms) if isinstance(term, LabelsTerm) and term.plain]
        kd = [
            i
            for i, term in enumerate(terms)
            if isinstance(term, KdTerm) and term.at == 1 and len(term.teacher_names) == 1
        ]
        return cls(labels[0], kd[0], terms[kd[0]].teacher_names[0]) if labels and kd else None

    def values(self, outputs: Outputs, given: Supervision) -> dict[int, Tensor]:
        """Return both terms by their places; nothing where their sharing is impossible, or not worth it."""
        targets, labels_B = given.targets[self.teacher], given.labels_B
        if not isinstance(targets, SparseTargets) or labels_B is None or given.mixed is not None:
            return {}
        if outputs.logits_BC.shape[1] < FEWEST_CLASSES:
            return {}
        labels, kd = labels_and_kd(outputs.logits_BC, labels_B, targets)
        return {self.labels: labels, self.kd: kd}


def labels_and_kd(student_BC: Tensor, labels_B: Tensor, targets: SparseTargets) -> tuple[Tensor, Tensor]:
    """Return `labels_cross_entropy` and `kd` at temperature 1, scalars.

    Their graph can be walked once, by the gradient of a sum of both.
    """
    pair, label_log_q_B = targets.pair_and_label(student_BC, labels_B, 1.0)
    return -label_log_q_B.mean(), kl_rows(*pair).mean()
