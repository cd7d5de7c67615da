"""Knowledge distillation: the divergence of a student from its teacher. B rows, C classes, K pairs of a row."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from storage.encodings import Capability
from storage.encodings.targets import SoftTargets
from student_train.needs import Needs, Outputs, Shapes, SoftNeed, Supervision
from student_train.terms import KdTerm


def kd(student_BC: Tensor, targets: SoftTargets, *, temperature: float) -> Tensor:
    """Return T²·KL(p‖q), with p the teacher and q the student, both at temperature T.

    Args:
        student_BC: logits, any float dtype; computed in float32, in log space.
        targets: the teacher's; of sparse ones, all classes that are not stored count as one.
        temperature: T, above 0; declared by the cache job where the targets are sparse.

    Returns:
        Scalar, nats, mean over rows, times T².

    Source: Hinton et al. 2015, section 2, arXiv 1503.02531. They minimise the cross-entropy; the KL divergence
    differs by the teacher's entropy, so the gradients are the same and the least value is 0.
    """
    log_p_BK, log_q_BK = targets.pair(student_BC, temperature)
    return functional.kl_div(log_q_BK, log_p_BK, log_target=True, reduction="batchmean") * temperature**2


def needs(term: KdTerm) -> Needs:
    """Return what the term needs: probabilities at its temperature."""
    return Needs(soft=frozenset([SoftNeed(term.teacher, Capability("bucket", term.temperature))]))


class KdLoss(nn.Module):
    """The term of an objective."""

    def __init__(self, term: KdTerm, shapes: Shapes):
        super().__init__()
        self.teacher = term.teacher
        self.temperature = term.temperature

    def forward(self, outputs: Outputs, given: Supervision) -> Tensor:
        """Return the loss of a batch."""
        return kd(outputs.logits_BC, given.targets[self.teacher], temperature=self.temperature)
