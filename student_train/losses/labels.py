"""Cross-entropy to the labels. B rows, C classes."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from student_train.feed.batches import MixedLabels, Needs, Supervision
from student_train.feed.selection import NO_CLASS
from student_train.losses.outputs import Outputs, Shapes
from student_train.options.terms import LabelsTerm


def labels_cross_entropy(
    student_BC: Tensor,
    labels_B: Tensor,
    *,
    smoothing: float = 0.0,
    mixed: MixedLabels | None = None,
    where_labelled: bool = False,
) -> Tensor:
    """Return the cross-entropy to the labels.

    Args:
        student_BC: logits, any float dtype; computed in float32.
        labels_B: int64, in [0, C).
        smoothing: share s of the mass that is spread evenly: the target is (1 − s)·onehot + s/C.
        mixed: of rows that are mixed of two: w·onehot + (1 − w)·onehot of the partner, in place of onehot.
        where_labelled: labels may be −1, for none: such a row's loss is 0.

    Returns:
        Scalar, nats, mean over all rows, so that parts of a batch add up to the whole.

    Source: smoothing by Szegedy et al. 2015, section 7, arXiv 1512.00567.
    """
    if mixed is None and not where_labelled:
        return functional.cross_entropy(student_BC.float(), labels_B, label_smoothing=smoothing)
    of_rows = partial(functional.cross_entropy, label_smoothing=smoothing, reduction="none", ignore_index=NO_CLASS)
    own_B = of_rows(student_BC.float(), labels_B)
    if mixed is None:
        return own_B.mean()
    partner_B = of_rows(student_BC.float(), mixed.partner_labels_B)
    return (mixed.own_weight_B * own_B + (1 - mixed.own_weight_B) * partner_B).mean()


def needs(term: LabelsTerm) -> Needs:
    """Return what the term needs: labels, of every row or where there are any."""
    return Needs(labels=not term.where_labelled, some_labels=term.where_labelled)


class LabelsLoss(nn.Module):
    """The term of an objective."""

    def __init__(self, term: LabelsTerm, shapes: Shapes):
        super().__init__()
        self.smoothing, self.where_labelled = term.smoothing, term.where_labelled

    def forward(self, outputs: Outputs, given: Supervision) -> Tensor:
        """Return the loss of a batch."""
        assert given.labels_B is not None
        return labels_cross_entropy(
            outputs.logits_BC,
            given.labels_B,
            smoothing=self.smoothing,
            mixed=given.mixed,
            where_labelled=self.where_labelled,
        )
