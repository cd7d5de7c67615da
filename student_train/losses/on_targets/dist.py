"""DIST: a student whose probabilities correlate with its teacher's, within rows and within columns.

B rows, C classes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from storage.encodings import Capability
from storage.targets.soft import SoftTargets
from student_train.feed.batches import Needs
from student_train.losses.on_targets.soft import SoftLoss, soft_needs
from student_train.losses.outputs import Shapes
from student_train.options.terms import DistTerm

TINY = 1e-12  # of a variance, so that one of 0 divides nothing


def dist(student_BC: Tensor, targets: SoftTargets, *, temperature: float, beta: float, gamma: float) -> Tensor:
    """Return beta(1 − ρ over rows) + gamma(1 − ρ over columns), with ρ Pearson's correlation of probabilities at T.

    Args:
        student_BC: logits, any float dtype; computed in float32.
        targets: the teacher's. Of sparse ones, rows take Σp² from the statistics and Σpq with the rest spread evenly;
            columns are approximate, the rest spread evenly.
        temperature: T.
        beta: weight of rows: which classes a sample is like.
        gamma: weight of columns: which samples a class is like; couples the rows of the batch.

    Returns:
        Scalar, mean over rows and over columns. A row or column without variance counts as uncorrelated.

    Source: Huang et al. 2022, eq. 7 to 10, arXiv 2205.10536. Their code multiplies by T², which this does not: a
    correlation's gradient does not fall with T² alone.
    """
    q_BC = torch.softmax(student_BC.float() / temperature, dim=1)
    total = torch.zeros((), device=q_BC.device)
    if beta:
        q_variance_B = (q_BC - 1 / q_BC.shape[1]).square().sum(dim=1)
        variance_B = targets.variance(temperature) * q_variance_B
        # squared, as of a product of two variances
        rows_B = targets.covariance(q_BC, temperature) * (variance_B + TINY**2).rsqrt()
        total = total + beta * (1 - rows_B).mean()
    if gamma:
        p_BC = targets.log_p(temperature).exp()
        p_BC, q_BC = p_BC - p_BC.mean(dim=0), q_BC - q_BC.mean(dim=0)
        variance_C = p_BC.square().sum(dim=0) * q_BC.square().sum(dim=0)
        columns_C = (p_BC * q_BC).sum(dim=0) * (variance_C + TINY**2).rsqrt()
        total = total + gamma * (1 - columns_C).mean()
    return total


def needs(term: DistTerm) -> Needs:
    """Return what the term needs.

    Columns need every logit, unless approximate ones are allowed. So does a mixture: Σp² of two teachers together is
    not stored.
    """
    if len(term.teacher_names) > 1 or (term.gamma and not term.allow_approximate_columns):
        return soft_needs(term, Capability("logits"))
    squares = [Capability("sum_squares", term.temperature)] * bool(term.beta)
    return soft_needs(term, Capability("bucket", term.temperature), *squares)


def couples_rows(term: DistTerm) -> bool:
    """Return whether it compares rows with each other: columns do."""
    return term.gamma > 0


def module(term: DistTerm, shapes: Shapes) -> nn.Module:
    """Return the term of an objective."""
    return SoftLoss(term, partial(dist, temperature=term.temperature, beta=term.beta, gamma=term.gamma))
