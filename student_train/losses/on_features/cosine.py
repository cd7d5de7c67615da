"""The angle between a student's layer and a teacher's feature. B rows, D channels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from student_train.feed.batches import Supervision
from student_train.losses.on_features.features import ProjectedLoss


def cosine(projected: Tensor, feature: Tensor) -> Tensor:
    """Return 1 − cos of two tensors of one shape, mean over rows, and over positions where there are any; in [0, 2].

    Computed in float32. That is half the squared distance of the two after each is scaled to length 1 (normalised MSE).

    Args:
        projected, feature: vectors (B, D), sequences (B, L, D) or maps (B, D, H, W).

    Source: the textbook's; normalised MSE in Grill et al. 2020 (BYOL), eq. 2, arXiv 2006.07733.
    """
    dim = 1 if feature.ndim == 4 else -1  # channels are second in a map, last elsewhere
    return (1 - functional.cosine_similarity(projected.float(), feature.float(), dim=dim)).mean()


class CosineLoss(ProjectedLoss):
    """The term of an objective."""

    def compare(self, layer: Tensor, feature: Tensor, given: Supervision) -> Tensor:
        return cosine(self.project(layer), feature)
