"""Losses on how the rows of a batch relate to each other; widths may differ, so they learn no projection.

B rows, D features of the student or of the teacher. A batch of one row has no relations, and a loss of 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from student_train.feed.batches import Supervision
from student_train.losses.on_features.features import FeatureLoss, full_precision, pooled
from student_train.losses.outputs import Shapes
from student_train.options.terms import RkdTerm

TINY = 1e-12  # of a mean distance, so that rows that are all the same divide nothing


def rkd_distance(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return the Huber distance of all pairs' distances, each side's over their mean; mean over pairs of two rows.

    Source: Park et al. 2019, eq. 6 to 8, arXiv 1904.05068, with the mean over pairs in place of the sum.
    """
    return _mean_of_pairs(functional.smooth_l1_loss(*_each(_distances, student_BD, teacher_BD), reduction="none"))


def rkd_angle(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return the Huber distance of the cosines of the angles at the middle row of all triples, mean over triples.

    Memory grows with B³: 134 MB a tensor for 323 rows in float32, 8 MB for 128.

    Source: Park et al. 2019, eq. 9 to 11, arXiv 1904.05068, with the mean over triples of rows, two of which may be the
    same, in place of the sum.
    """
    return functional.smooth_l1_loss(*_each(_angles, student_BD, teacher_BD))


def similarity(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return ‖G_t − G_s‖²/B², where G is F·Fᵀ with rows scaled to length 1.

    Source: Tung and Mori 2019, eq. 2 to 4, arXiv 1907.09682.
    """
    return functional.mse_loss(*_each(_similarities, student_BD, teacher_BD))


def pkt(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Return KL(p_t‖p_s), nats, mean over rows: p are a row's similarities (1 + cos)/2 to the others over their sum.

    Source: Passalis and Tefas 2018, eq. 5 to 8, arXiv 1803.10837, with the mean over rows in place of the sum; their
    code counts each row as its own neighbour, their text and this do not.
    """
    log_q_BB, log_p_BB = _each(_log_neighbours, student_BD, teacher_BD)
    return (log_p_BB.exp() * (log_p_BB - log_q_BB)).sum(dim=1).mean()


def _each(function: Callable[[Tensor], Tensor], student_BD: Tensor, teacher_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Return a function of each side, in float32."""
    with full_precision(student_BD):
        return function(student_BD.float()), function(teacher_BD.float())


def _distances(rows_BD: Tensor) -> Tensor:
    """Return the Euclidean distances of all pairs over their mean, (B, B)."""
    # Not through inner products, which lose small distances; its gradient at a distance of 0 is 0.
    distances_BB = torch.cdist(rows_BD, rows_BD, compute_mode="donot_use_mm_for_euclid_dist")
    return distances_BB / _mean_of_pairs(distances_BB).clamp(min=TINY)


def _angles(rows_BD: Tensor) -> Tensor:
    """Return the cosines of the angles at row i between rows j and k, (B, B, B); 0 where i is one of them."""
    # (B, B, D): from each row to every row
    directions_BBD = functional.normalize(rows_BD[None] - rows_BD[:, None], dim=2)
    return torch.bmm(directions_BBD, directions_BBD.transpose(1, 2))


def _similarities(rows_BD: Tensor) -> Tensor:
    """Return inner products of all pairs, each row scaled to length 1, (B, B)."""
    return functional.normalize(rows_BD @ rows_BD.T, dim=1)


def _log_neighbours(rows_BD: Tensor) -> Tensor:
    """Return the log of each row's similarities to the others over their sum, (B, B); its own counts for nothing."""
    unit_BD = functional.normalize(rows_BD, dim=1)
    # rounding may leave a similarity below 0
    log_BB = ((unit_BD @ unit_BD.T + 1) / 2).clamp(min=1e-7).log()
    itself_BB = torch.eye(len(rows_BD), dtype=torch.bool, device=rows_BD.device)
    return log_BB.masked_fill(itself_BB, -1e4).log_softmax(dim=1)  # finite: 0 times it is 0


def _mean_of_pairs(values_BB: Tensor) -> Tensor:
    """Return the mean over pairs of two different rows; what a row has with itself must be 0."""
    return values_BB.sum() / max(1, len(values_BB) * (len(values_BB) - 1))


class RkdLoss(FeatureLoss):
    """The term of an objective; of maps and sequences, on their means over positions."""

    def __init__(self, term: RkdTerm, shapes: Shapes):
        super().__init__(term, shapes)
        self.distance, self.angle = term.distance, term.angle

    def compare(self, layer: Tensor, feature: Tensor, given: Supervision) -> Tensor:
        student_BD, teacher_BD = pooled(layer), pooled(feature)
        distance = self.distance * rkd_distance(student_BD, teacher_BD) if self.distance else 0.0
        angle = self.angle * rkd_angle(student_BD, teacher_BD) if self.angle else 0.0
        return distance + angle  # type: ignore[return-value]  # one of them is on


class SimilarityLoss(FeatureLoss):
    """The term of an objective; of maps and sequences, all elements are one vector, as in the source."""

    def compare(self, layer: Tensor, feature: Tensor, given: Supervision) -> Tensor:
        return similarity(layer.flatten(1), feature.flatten(1))


class PktLoss(FeatureLoss):
    """The term of an objective; of maps and sequences, on their means over positions."""

    def compare(self, layer: Tensor, feature: Tensor, given: Supervision) -> Tensor:
        return pkt(pooled(layer), pooled(feature))
