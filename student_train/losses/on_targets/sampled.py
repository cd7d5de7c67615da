"""Cross-entropy to what a teacher's distribution was sampled as. Unbiased: its mean over draws is that of all classes.

B rows, C classes, K kept classes, N draws.
"""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import Tensor, nn

from storage.encodings import Capability
from storage.targets.soft import OneTeacher, SoftTargets, SparseTargets
from student_train.feed.batches import Needs
from student_train.losses.on_targets.soft import SoftLoss, mean_over_rows, soft_needs
from student_train.losses.outputs import Shapes
from student_train.options.terms import RandomSamplingTerm, StratifiedTerm


def random_sampling(student_BC: Tensor, targets: SoftTargets, *, less_entropy: bool = False) -> Tensor:
    """Return −Σ (c/n) log q over n draws from the teacher, class i having been drawn c times; temperature 1.

    Args:
        student_BC: logits, any float dtype; computed in float32.
        targets: draws from all classes.
        less_entropy: take the teacher's entropy off, so that it estimates a divergence; the gradient is the same.

    Returns:
        Scalar, nats, mean over rows.

    Source: Anshumann et al. 2025, eq. 5 and 6, arXiv 2503.16870. The draws are from p itself, so that the weight p/r
    of each is 1; weights are not renormalised.
    """
    return mean_over_rows(partial(_rows, student_BC, less_entropy), targets)


def stratified(student_BC: Tensor, targets: SoftTargets, *, less_entropy: bool = False) -> Tensor:
    """Return −Σ_K p log q − p⊥ Σ (c/n) log q, with K the kept classes and the draws from the rest; temperature 1.

    Args:
        student_BC: logits, any float dtype; computed in float32.
        targets: kept classes, and draws from the others.
        less_entropy: take the teacher's entropy off, so that it estimates a divergence; the gradient is the same.

    Returns:
        Scalar, nats, mean over rows.

    Source: ours. Without kept classes it is random sampling; without a rest, cross-entropy.
    """
    return mean_over_rows(partial(_rows, student_BC, less_entropy), targets)


def _rows(student_BC: Tensor, less_entropy: bool, teacher: OneTeacher) -> Tensor:
    sparse = cast("SparseTargets", teacher)  # checked before the first step: `needs`
    rows_B = -sparse.expected_log_q(student_BC)
    if not less_entropy:
        return rows_B
    assert sparse.statistics is not None
    return rows_B - sparse.statistics.entropy_B


def random_sampling_needs(term: RandomSamplingTerm) -> Needs:
    """Return what the term needs: draws, and the entropy if it is to be taken off."""
    return soft_needs(term, Capability("draws"), *[Capability("entropy")] * term.less_entropy)


def stratified_needs(term: StratifiedTerm) -> Needs:
    """Return what the term needs: kept classes and draws, and the entropy if it is to be taken off."""
    return soft_needs(term, Capability("stratified"), *[Capability("entropy")] * term.less_entropy)


def random_sampling_module(term: RandomSamplingTerm, shapes: Shapes) -> nn.Module:
    """Return the term of an objective."""
    return SoftLoss(term, partial(random_sampling, less_entropy=term.less_entropy))


def stratified_module(term: StratifiedTerm, shapes: Shapes) -> nn.Module:
    """Return the term of an objective."""
    return SoftLoss(term, partial(stratified, less_entropy=term.less_entropy))
