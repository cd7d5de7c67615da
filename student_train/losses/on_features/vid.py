"""Variational information distillation: how likely a feature is, given the student's layer. D channels."""

from __future__ import annotations

from math import expm1, log

import torch
from torch import Tensor, nn
from torch.nn import functional

from student_train.feed.batches import Supervision
from student_train.losses.on_features.features import ProjectedLoss, channels
from student_train.losses.outputs import Shapes
from student_train.options.terms import VidTerm

LEAST_VARIANCE = 1e-5  # to be divided by
FIRST_VARIANCE = 5.0


def vid(projected: Tensor, feature: Tensor, variance_D: Tensor) -> Tensor:
    """Return ½ log σ² + (t − μ)²/(2σ²), the Gaussian's minus log-likelihood but for ½ log 2π, mean over all elements.

    Args:
        projected, feature: μ and t, of one shape: (B, D), (B, L, D) or (B, D, H, W); computed in float32.
        variance_D: σ² of each channel, above 0.

    Returns:
        Scalar, nats an element; below 0 where the variance is small.

    Source: Ahn et al. 2019, eq. 5 and 6, arXiv 1904.05835, with the mean over elements in place of the sum, and one
    linear map as μ where they have a small network.
    """
    shape = (-1, 1, 1) if feature.ndim == 4 else (-1,)  # channels are second in a map, last elsewhere
    variance = variance_D.float().reshape(shape)
    return (0.5 * ((projected.float() - feature.float()).square() / variance + variance.log())).mean()


class VidLoss(ProjectedLoss):
    """The term of an objective; learns the projection and the variance of each channel."""

    def __init__(self, term: VidTerm, shapes: Shapes):
        super().__init__(term, shapes)
        start = log(expm1(FIRST_VARIANCE - LEAST_VARIANCE))  # softplus(start) + LEAST_VARIANCE = FIRST_VARIANCE
        self.scale_D = nn.Parameter(torch.full((channels(self.teacher_shape),), start))

    def compare(self, layer: Tensor, feature: Tensor, given: Supervision) -> Tensor:
        return vid(self.project(layer), feature, functional.softplus(self.scale_D) + LEAST_VARIANCE)
