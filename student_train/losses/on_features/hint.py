"""The distance between a student's layer and a teacher's feature. B rows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from student_train.feed.batches import Supervision
from student_train.losses.on_features.features import ProjectedLoss


def hint(projected: Tensor, feature: Tensor) -> Tensor:
    """Return the mean squared difference of two tensors of one shape (B, …), over all elements.

    Computed in float32.

    Source: Romero et al. 2014 (FitNets), eq. 3, arXiv 1412.6550, with the mean over elements in place of half the
    sum, so that a weight means the same for every width, and trained together with the other terms instead of
    in a stage of its own.
    """
    return functional.mse_loss(projected.float(), feature.float())


class HintLoss(ProjectedLoss):
    """The term of an objective."""

    def compare(self, layer: Tensor, feature: Tensor, given: Supervision) -> Tensor:
        return hint(self.project(layer), feature)
