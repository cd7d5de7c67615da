"""A loss on the numbers that a dataset has for a row. B rows, T numbers of a row."""

from __future__ import annotations

from torch import Tensor, nn

from student_train.feed.batches import Needs, Supervision
from student_train.losses.outputs import Outputs, Shapes
from student_train.options.terms import TargetMseTerm


def needs(term: TargetMseTerm) -> Needs:
    """Return what the term needs: the numbers of every row."""
    return Needs(labels=True)


class TargetMse(nn.Module):
    """The mean squared error of a student's numbers, in their own unit squared; the term of an objective."""

    def __init__(self, term: TargetMseTerm, shapes: Shapes):
        super().__init__()

    def forward(self, outputs: Outputs, given: Supervision) -> Tensor:
        """Return the loss of a batch: a scalar, mean over rows and numbers."""
        assert given.labels_B is not None
        return (outputs.logits_BC.float() - given.labels_B).square().mean()
