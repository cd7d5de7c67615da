"""Losses on a student's answers and a teacher's, where both are vectors: embeddings, or numbers of a regression.

What compares them is what compares layers with features, without a layer, a feature or a projection; and InfoNCE, where
the cached vectors of the batch's other rows are what a row is told from. B rows, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from storage.encodings import Capability
from storage.targets.vectors import VectorTargets
from student_train.feed.batches import Needs, SoftNeed, Supervision
from student_train.losses.on_features.cosine import cosine
from student_train.losses.on_features.features import full_precision
from student_train.losses.on_features.hint import hint
from student_train.losses.on_features.relations import pkt, rkd_angle, rkd_distance, similarity
from student_train.losses.outputs import Outputs, Shapes
from student_train.options.terms import InfoNceTerm, VectorRkdTerm, VectorTerm

VECTORS = Capability("vectors")


def infonce(student_BD: Tensor, teacher_BD: Tensor, *, temperature: float) -> Tensor:
    """Return −log of how surely each row's vector tells its own teacher vector from those of the batch's other rows.

    The softmax is over the batch, of cosines over the temperature. Two rows of one vector share their mass.

    Returns:
        Scalar, nats, mean over rows; 0 of a batch of one row.

    Source: van den Oord et al. 2018, eq. 4, arXiv 1807.03748, with the cosine over a temperature as score.
    """
    with full_precision(student_BD):
        student_BD, teacher_BD = (functional.normalize(each.float(), dim=1) for each in (student_BD, teacher_BD))
        scores_BB = student_BD @ teacher_BD.T / temperature
    own_B = torch.arange(len(scores_BB), device=scores_BB.device)
    return functional.cross_entropy(scores_BB, own_B)


def needs(term: VectorTerm) -> Needs:
    """Return what a term needs: the teacher's vectors."""
    return Needs(soft=frozenset([SoftNeed(term.teacher_names[0], VECTORS)]))


class VectorLoss(nn.Module):
    """The term of an objective: a function of the student's vectors and the teacher's, (B, D) each."""

    def __init__(self, term: VectorTerm, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        (self.teacher,) = term.teacher_names
        self.function = function

    def forward(self, outputs: Outputs, given: Supervision) -> Tensor:
        """Return the loss of a batch."""
        targets = cast("VectorTargets", given.targets[self.teacher])  # checked before the first step: `needs`
        return self.function(outputs.logits_BC, targets.vectors_BD)


def module_of(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[VectorTerm, Shapes], nn.Module]:
    """Return what makes the module of a term without options."""
    return lambda term, shapes: VectorLoss(term, function)


def rkd_module(term: VectorRkdTerm, shapes: Shapes) -> nn.Module:
    """Return the module of a term on distances and angles."""

    def rkd(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
        distance = term.distance * rkd_distance(student_BD, teacher_BD) if term.distance else 0.0
        angle = term.angle * rkd_angle(student_BD, teacher_BD) if term.angle else 0.0
        return distance + angle  # type: ignore[return-value]  # one of them is on

    return VectorLoss(term, rkd)


def infonce_module(term: InfoNceTerm, shapes: Shapes) -> nn.Module:
    """Return the module of a term that tells rows from each other."""
    return VectorLoss(term, lambda student, teacher: infonce(student, teacher, temperature=term.temperature))


__all__ = ["cosine", "hint", "infonce", "infonce_module", "module_of", "needs", "pkt", "rkd_module", "similarity"]
