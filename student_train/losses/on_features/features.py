"""What losses on features share: the way from a student's layer to a teacher's feature, and to vectors.

A layer or feature of a row is a vector (D), a sequence (L, D) or a map (D, H, W). B rows, D channels, L positions.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from storage.errors import BadRequest
from student_train.feed.batches import ArrayKey, Needs, Supervision
from student_train.losses.outputs import Outputs, Shapes
from student_train.options.terms import FeatureTerm, ProjectedTerm

Shape = tuple[int, ...]


def feature_key(term: FeatureTerm) -> ArrayKey:
    """Return where the cache keeps a term's feature."""
    return ArrayKey(term.teacher_names[0], f"feature/{term.feature}")


def feature_needs(term: FeatureTerm) -> Needs:
    """Return what most terms on features need: one feature."""
    return Needs(features=frozenset([feature_key(term)]))


class FeatureLoss(nn.Module):
    """A term on one layer of the student and one feature of the teacher: subclasses compare the two.

    Attributes:
        layer: the student's.
        key: the teacher's feature.
        student_shape, teacher_shape: of one row of each.
    """

    def __init__(self, term: FeatureTerm, shapes: Shapes):
        super().__init__()
        self.layer = term.student_layer
        self.key = feature_key(term)
        self.student_shape, self.teacher_shape = shapes.layers[self.layer], shapes.features[self.key]

    def forward(self, outputs: Outputs, given: Supervision) -> Tensor:
        """Return the loss of a batch."""
        return self.compare(outputs.layers[self.layer], given.features[self.key], given)

    def compare(self, layer: Tensor, feature: Tensor, given: Supervision) -> Tensor:
        """Return the loss of a layer's output and a feature, (B, …) each."""
        raise NotImplementedError

    def misfit(self, expected: str, do: str) -> BadRequest:
        """Return the error of a layer and a feature that cannot be compared."""
        return BadRequest(
            f"layer {self.layer!r} cannot be taught by feature {self.key}",
            found=f"the layer has shape {self.student_shape}, the feature {self.teacher_shape}",
            expected=expected,
            do=do,
        )


class ProjectedLoss(FeatureLoss):
    """A term that compares with the feature the layer itself, or what a learned projection makes of it.

    A projection is dropped at export: only without one does the student that is kept end near the feature.

    A map (D, H, W) reaches another map through a 1×1 convolution, after average pooling to the teacher's H×W
    where sizes differ. Vectors and sequences (D), (L, D) pass a linear layer. A map or a sequence reaches a pooled
    feature through its mean over positions.
    """

    def __init__(self, term: ProjectedTerm, shapes: Shapes):
        super().__init__(term, shapes)
        # 3: a map, 2: a sequence, 1: a vector
        ranks = (len(self.student_shape), len(self.teacher_shape))
        sequences = ranks == (2, 2) and self.student_shape[0] == self.teacher_shape[0]
        if ranks not in ((3, 3), (1, 1), (2, 1), (3, 1)) and not sequences:
            raise self.misfit(
                expected="two maps, two sequences of one length, or a feature pooled to (D,)",
                do='choose another layer, or cache the feature with pool = "mean"',
            )
        widths = channels(self.student_shape), channels(self.teacher_shape)
        self.projection: nn.Module = nn.Identity()
        if learns_projection(term, self.student_shape, self.teacher_shape):
            self.projection = nn.Conv2d(*widths, 1) if ranks == (3, 3) else nn.Linear(*widths)
        elif widths[0] != widths[1]:
            raise self.misfit(
                expected=f"one width, as projection = false wants: the layer has {widths[0]}, the feature {widths[1]}",
                do=f"leave projection out, and a map between them is learned; or name a layer {widths[1]} wide",
            )

    def project(self, layer: Tensor) -> Tensor:
        """Return what is compared with the feature, of its shape."""
        if len(self.teacher_shape) == 1 and layer.ndim > 2:
            layer = pooled(layer)
        elif self.student_shape[1:] != self.teacher_shape[1:] and layer.ndim == 4:
            _, height, width = self.teacher_shape
            layer = functional.adaptive_avg_pool2d(layer, (height, width))
        projected: Tensor = self.projection(layer)
        return projected


def learns_projection(term: ProjectedTerm, student_shape: Shape, teacher_shape: Shape) -> bool:
    """Return whether a term learns a map from the layer to the feature: as it says, else where their widths differ."""
    if term.projection is not None:
        return term.projection
    return channels(student_shape) != channels(teacher_shape)


def channels(shape: Shape) -> int:
    """Return D."""
    return shape[0] if len(shape) == 3 else shape[-1]


def pooled(values: Tensor) -> Tensor:
    """Return vectors (B, D): the mean over the positions of a sequence (B, L, D) or a map (B, D, H, W)."""
    if values.ndim == 2:
        return values
    return values.mean(dim=(2, 3) if values.ndim == 4 else 1)


def full_precision(values: Tensor) -> AbstractContextManager[object]:
    """Return a context in which no product of `values` is autocast: inner products of rows want all of float32."""
    kind = values.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # the meta device knows no autocast
        return nullcontext()
    return torch.autocast(kind, enabled=False)
