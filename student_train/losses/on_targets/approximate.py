"""KD with an assumption about the classes that are not stored, to compare with what needs none.

B rows, C classes, K kept classes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from storage.encodings import Capability
from storage.targets.soft import OneTeacher, SoftTargets, SparseTargets
from student_train.feed.batches import Needs
from student_train.losses.on_targets.soft import SoftLoss, kl_rows, mean_over_rows, soft_needs
from student_train.losses.outputs import Shapes
from student_train.options.terms import MarginalSmoothingTerm, TopkBiasedTerm


def marginal_smoothing(student_BC: Tensor, targets: SoftTargets, *, temperature: float) -> Tensor:
    """Return T²·KL(p̄‖q) over all classes, where p̄ has the stored p and spreads the rest evenly over the others.

    Args:
        student_BC: logits, any float dtype; computed in float32. Holds a (B, C) tensor for the teacher.
        targets: the teacher's; dense ones have no rest, and it is KD.
        temperature: T.

    Returns:
        Scalar, nats, mean over rows, times T².

    Source: Shen and Xing 2022 (FKD), section 3.3, "marginal smoothing", arXiv 2112.01528; Wu et al. 2022 (TinyViT),
    arXiv 2207.10666. Reasonable for about 1,000 classes, poor for vocabularies.
    """
    log_q_BC = torch.log_softmax(student_BC.float() / temperature, dim=1)  # once for all teachers
    return mean_over_rows(lambda teacher: kl_rows(teacher.log_p(temperature), log_q_BC), targets) * temperature**2


def topk_biased(student_BC: Tensor, targets: SoftTargets, *, temperature: float) -> Tensor:
    """Return T²·Σ_K p̃ log(p̃/q), with p̃ = p/Σ_K p: the kept classes scaled up as if there were no others.

    Biased: it is least for a student that gives other classes nothing, so it teaches over-confidence. A baseline.

    Args:
        student_BC: logits, any float dtype; computed in float32.
        targets: the teacher's; dense ones have no others, and it is KD.
        temperature: T.

    Returns:
        Scalar, nats, mean over rows, times T².

    Source: common practice; the bias is measured by Anshumann et al. 2025, section 3, arXiv 2503.16870.
    """

    def rows(teacher: OneTeacher) -> Tensor:
        log_p_BK, log_q_BK = teacher.pair(student_BC, temperature)
        if isinstance(teacher, SparseTargets):  # its last column is the bucket
            log_p_BK, log_q_BK = log_p_BK[:, :-1], log_q_BK[:, :-1]
        return kl_rows(torch.log_softmax(log_p_BK, dim=1), log_q_BK)

    return mean_over_rows(rows, targets) * temperature**2


def needs(term: MarginalSmoothingTerm | TopkBiasedTerm) -> Needs:
    """Return what the terms need: probabilities at their temperature."""
    return soft_needs(term, Capability("bucket", term.temperature))


def marginal_smoothing_module(term: MarginalSmoothingTerm, shapes: Shapes) -> nn.Module:
    """Return the term of an objective."""
    return SoftLoss(term, partial(marginal_smoothing, temperature=term.temperature))


def topk_biased_module(term: TopkBiasedTerm, shapes: Shapes) -> nn.Module:
    """Return the term of an objective."""
    return SoftLoss(term, partial(topk_biased, temperature=term.temperature))
