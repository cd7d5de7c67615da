"""Matching logits as they are. B rows, C classes."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from storage.encodings import Capability
from storage.targets.soft import DenseTargets, OneTeacher, SoftTargets
from student_train.feed.batches import Needs
from student_train.losses.on_targets.soft import SoftLoss, mean_over_rows, soft_needs
from student_train.losses.outputs import Shapes
from student_train.options.terms import LogitMseTerm


def logit_mse(student_BC: Tensor, targets: SoftTargets) -> Tensor:
    """Return ‖z_s − z_t‖², summed over classes, mean over rows; their offset counts too.

    Args:
        student_BC: logits z_s, any float dtype; computed in float32.
        targets: every logit z_t. Of several teachers it is their distances, mixed: the gradient is that of the distance
            to their mean logits.

    Source: Kim et al. 2021, eq. 4, arXiv 2105.08919.
    """

    def rows(teacher: OneTeacher) -> Tensor:
        logits_BC = cast("DenseTargets", teacher).logits_BC  # checked before the first step: `needs`
        return (student_BC.float() - logits_BC).square().sum(dim=1)

    return mean_over_rows(rows, targets)


def needs(term: LogitMseTerm) -> Needs:
    """Return what the term needs: every logit."""
    return soft_needs(term, Capability("logits"))


def module(term: LogitMseTerm, shapes: Shapes) -> nn.Module:
    """Return the term of an objective."""
    return SoftLoss(term, logit_mse)
