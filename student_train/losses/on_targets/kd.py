"""Knowledge distillation: the divergence of a student from its teacher. B rows, C classes.

Both sides at a temperature are `SoftTargets.pair` (storage/targets/soft.py, support.py); each loss that has it
multiplies by T² itself, as this one does.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from storage.encodings import Capability
from storage.targets.soft import SoftTargets
from student_train.feed.batches import Needs
from student_train.losses.on_targets.soft import SoftLoss, kl_rows, mean_over_rows, soft_needs
from student_train.losses.outputs import Shapes
from student_train.options.terms import KdTerm


def kd(student_BC: Tensor, targets: SoftTargets, *, temperature: float) -> Tensor:
    """Return T²·KL(p‖q), with p the teacher and q the student, both at temperature T.

    Args:
        student_BC: logits, any float dtype; computed in float32, in log space.
        targets: the teacher's; of sparse ones, all classes that are not stored count as one, whose mass is exact
            (bucketed KD). That is never more than the divergence over all classes.
        temperature: T, above 0; declared by the cache job where the targets are sparse.

    Returns:
        Scalar, nats, mean over rows, times T².

    Source: Hinton et al. 2015, section 2, arXiv 1503.02531. They minimise the cross-entropy; the KL divergence
    differs by the teacher's entropy, so the gradients are the same and the least value is 0.
    """
    return mean_over_rows(lambda teacher: kl_rows(*teacher.pair(student_BC, temperature)), targets) * temperature**2


def needs(term: KdTerm) -> Needs:
    """Return what the term needs: probabilities at its temperature."""
    return soft_needs(term, Capability("bucket", term.at))


def module(term: KdTerm, shapes: Shapes) -> nn.Module:
    """Return the term of an objective."""
    return SoftLoss(term, partial(kd, temperature=term.at))
