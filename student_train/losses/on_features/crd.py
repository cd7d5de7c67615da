"""Contrastive representation distillation: each row's own feature told from those of other rows.

B rows, D channels, W width of the space in which they are compared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from student_train.feed.batches import Needs, Supervision
from student_train.losses.on_features.features import FeatureLoss, channels, feature_needs, full_precision, pooled
from student_train.losses.outputs import Shapes
from student_train.options.terms import CrdTerm


def crd(student_BW: Tensor, teacher_BW: Tensor, *, temperature: float, negatives_BB: Tensor) -> Tensor:
    """Return −log h(s_i, t_i) − Σ_j log(1 − h(s_i, t_j)), with h = e^f/(e^f + N/M), f = s·t/τ of vectors of length 1.

    Args:
        student_BW, teacher_BW: of any length; computed in float32.
        temperature: τ.
        negatives_BB: bool, whether row j's feature is one to tell row i's from. N of them in a row.

    Returns:
        Scalar, nats, mean over rows. A row without negatives has its first part only.

    Source: Tian et al. 2020, eq. 16 to 19, arXiv 1910.10699. Their negatives come from a memory bank of all M samples,
    N = 16,384 at random, as an earlier epoch left them, and each side in turn is the one that has them. These are the
    features of the batch's other rows, read from the cache and embedded in this step: M = B, and the student is the
    one that has negatives.
    """
    with full_precision(student_BW):
        s_BW, t_BW = (functional.normalize(each.float(), dim=1) for each in (student_BW, teacher_BW))
        scores_BB = s_BW @ t_BW.T / temperature
    # (B, 1): N over M, and at least something to take the logarithm of
    log_ratio_B1 = (negatives_BB.sum(dim=1, keepdim=True).clamp(min=1) / len(negatives_BB)).log()
    known_BB = scores_BB - log_ratio_B1  # h is its sigmoid
    own_B = functional.logsigmoid(known_BB.diagonal())
    other_B = (functional.logsigmoid(-known_BB) * negatives_BB).sum(dim=1)
    return -(own_B + other_B).mean()


def needs(term: CrdTerm) -> Needs:
    """Return what the term needs: one feature, and labels unless a row of the same class is a negative too."""
    by_class = not term.same_class_negatives
    return feature_needs(term) | Needs(labels=by_class, one_class=frozenset([term.loss] * by_class))


class CrdLoss(FeatureLoss):
    """The term of an objective; learns a linear map of each side. Maps and sequences are pooled to their means."""

    def __init__(self, term: CrdTerm, shapes: Shapes):
        super().__init__(term, shapes)
        self.temperature = term.temperature
        self.same_class = term.same_class_negatives
        self.student = nn.Linear(channels(self.student_shape), term.width)
        self.teacher = nn.Linear(channels(self.teacher_shape), term.width)

    def compare(self, layer: Tensor, feature: Tensor, given: Supervision) -> Tensor:
        student_BW, teacher_BW = self.student(pooled(layer)), self.teacher(pooled(feature))
        negatives_BB = ~torch.eye(len(layer), dtype=torch.bool, device=layer.device)
        if not self.same_class:
            assert given.labels_B is not None
            negatives_BB = given.labels_B[:, None] != given.labels_B[None]  # and so not itself
        return crd(student_BW, teacher_BW, temperature=self.temperature, negatives_BB=negatives_BB)
