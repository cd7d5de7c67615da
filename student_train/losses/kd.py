"""Knowledge distillation on dense logits. B rows, C classes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from student_train.needs import ArrayKey, Batch, Needs, Outputs, Shapes
from student_train.options import KdTerm


def kd(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float) -> Tensor:
    """Return T²·KL(p‖q), with p the teacher and q the student, both at temperature T.

    Args:
        student_BC: logits, any float dtype; computed in float32, in log space.
        teacher_BC: logits, likewise.
        temperature: T, above 0.

    Returns:
        Scalar, nats, mean over rows, times T².

    Source: Hinton et al. 2015, section 2, arXiv 1503.02531. They minimise the cross-entropy; the KL divergence
    differs by the teacher's entropy, so the gradients are the same and the least value is 0.
    """
    log_q_BC = functional.log_softmax(student_BC.float() / temperature, dim=1)
    log_p_BC = functional.log_softmax(teacher_BC.float() / temperature, dim=1)
    return functional.kl_div(log_q_BC, log_p_BC, log_target=True, reduction="batchmean") * temperature**2


def needs(term: KdTerm) -> Needs:
    """Return what the term needs: the teacher's logits."""
    return Needs(arrays=frozenset([ArrayKey(term.teacher, "logits")]))


class KdLoss(nn.Module):
    """The term of an objective."""

    def __init__(self, term: KdTerm, shapes: Shapes):
        super().__init__()
        self.key = ArrayKey(term.teacher, "logits")
        self.temperature = term.temperature

    def forward(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        return kd(outputs.logits_BC, batch.targets[self.key], temperature=self.temperature)
