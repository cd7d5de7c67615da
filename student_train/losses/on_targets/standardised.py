"""KD of standardised logits. B rows, C classes."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from storage.encodings import Capability
from storage.targets.soft import OneTeacher, SoftTargets
from student_train.feed.batches import Needs
from student_train.losses.on_targets.soft import SoftLoss, kl_rows, mean_over_rows, soft_needs
from student_train.losses.outputs import Shapes
from student_train.options.terms import StandardisedTerm


def standardised(student_BC: Tensor, targets: SoftTargets, *, temperature: float) -> Tensor:
    """Return T²·KL(p‖q) of logits less their mean, over their deviation and T, each row of each side by itself.

    The student is free in the scale and offset of its logits.

    Args:
        student_BC: logits, any float dtype; computed in float32.
        targets: the teacher's; sparse ones hold the deviation and, for each declared T, the standardised rest.
        temperature: T, that standardised logits are divided by.

    Returns:
        Scalar, nats, mean over rows, times T².

    Source: Sun et al. 2024, algorithm 1, arXiv 2403.01427. The deviation is the population's, as in their equation 12;
    their code divides by C − 1.
    """

    def rows(teacher: OneTeacher) -> Tensor:
        return kl_rows(*teacher.standardised_pair(student_BC, temperature))

    return mean_over_rows(rows, targets) * temperature**2


def needs(term: StandardisedTerm) -> Needs:
    """Return what the term needs: standardised probabilities at its temperature."""
    return soft_needs(term, Capability("standardised", term.temperature))


def module(term: StandardisedTerm, shapes: Shapes) -> nn.Module:
    """Return the term of an objective."""
    return SoftLoss(term, partial(standardised, temperature=term.temperature))
