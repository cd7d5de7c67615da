"""Attention transfer: where a map has its energy. B rows, D channels, H×W pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from student_train.feed.batches import Supervision
from student_train.losses.on_features.features import FeatureLoss
from student_train.losses.outputs import Shapes
from student_train.options.terms import AttentionTerm


def attention(student_BHW: Tensor, teacher_BHW: Tensor) -> Tensor:
    """Return ‖a/‖a‖ − b/‖b‖‖² of two attention maps, each row flattened to a vector; mean over rows, in [0, 2].

    Source: Zagoruyko and Komodakis 2017, eq. 2, arXiv 1612.03928. They write the norm and their code takes the mean of
    squares over elements; this is the squared norm, which has a gradient at 0 and does not fall with the size of a map.
    """
    a_BP, b_BP = (functional.normalize(each.float().flatten(1), dim=1) for each in (student_BHW, teacher_BHW))
    return (a_BP - b_BP).square().sum(dim=1).mean()


def attention_map(values: Tensor) -> Tensor:
    """Return the mean over channels of squares, (B, H, W), of a map (B, D, H, W); an attention map stays what it is.

    Source: as `attention`, eq. 1 with p = 2: their sum differs by a factor, which the norm takes out.
    """
    # Of maps, not of rows: features that were stored as attention maps have no channels any more.
    return values if values.ndim == 3 else values.float().square().mean(dim=1)


class AttentionLoss(FeatureLoss):
    """The term of an objective; learns nothing.

    The teacher's feature is a map (D, H, W), or its attention map (H, W), which is D times smaller. The larger of the
    two attention maps is average pooled to the smaller one's size.
    """

    def __init__(self, term: AttentionTerm, shapes: Shapes):
        super().__init__(term, shapes)
        if len(self.student_shape) != 3 or len(self.teacher_shape) not in (2, 3):
            raise self.misfit(
                expected="a layer (D, H, W), and a feature (D, H, W) or its attention map (H, W)",
                do='name a layer that gives maps, and cache the feature with pool = "attention" or "none"',
            )
        self.height = min(self.student_shape[-2], self.teacher_shape[-2])
        self.width = min(self.student_shape[-1], self.teacher_shape[-1])

    def compare(self, layer: Tensor, feature: Tensor, given: Supervision) -> Tensor:
        size = (self.height, self.width)
        return attention(*(functional.adaptive_avg_pool2d(attention_map(each), size) for each in (layer, feature)))
