"""The distance between a student's layer and a teacher's feature. B rows, D features, L positions, H×W pixels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from storage.errors import BadRequest
from student_train.needs import ArrayKey, Needs, Outputs, Shapes, Supervision
from student_train.terms import HintTerm


def hint(projected: Tensor, feature: Tensor) -> Tensor:
    """Return the mean squared difference of two tensors of one shape (B, …), over all elements.

    Computed in float32.

    Source: Romero et al. 2014 (FitNets), eq. 3, arXiv 1412.6550, with the mean over elements in place of half the
    sum, so that a weight means the same for every width, and trained together with the other terms instead of
    in a stage of its own.
    """
    return functional.mse_loss(projected.float(), feature.float())


def needs(term: HintTerm) -> Needs:
    """Return what the term needs: one feature."""
    return Needs(features=frozenset([_key(term)]))


class HintLoss(nn.Module):
    """The term of an objective, with its learned projection from the student's width to the teacher's.

    A map (D, H, W) reaches another map through a 1×1 convolution, after average pooling to the teacher's H×W
    where sizes differ. Vectors and sequences (D), (L, D) pass a linear layer. A map or a sequence reaches a pooled
    feature through its mean over positions.
    """

    def __init__(self, term: HintTerm, shapes: Shapes):
        super().__init__()
        self.layer = term.student_layer
        self.key = _key(term)
        self.student_shape, self.teacher_shape = shapes.layers[self.layer], shapes.features[self.key]
        ranks = (len(self.student_shape), len(self.teacher_shape))
        if ranks == (3, 3):
            self.projection: nn.Module = nn.Conv2d(self.student_shape[0], self.teacher_shape[0], 1)
        elif ranks in ((1, 1), (2, 1), (3, 1)) or (ranks == (2, 2) and self.student_shape[0] == self.teacher_shape[0]):
            width = self.student_shape[0 if ranks[0] == 3 else -1]
            self.projection = nn.Linear(width, self.teacher_shape[-1])
        else:
            raise BadRequest(
                f"layer {self.layer!r} cannot be taught by feature {self.key}",
                found=f"the layer has shape {self.student_shape}, the feature {self.teacher_shape}",
                expected="two maps, two sequences of one length, or a feature pooled to (D,)",
                do='choose another layer, or cache the feature with pool = "mean"',
            )

    def forward(self, outputs: Outputs, given: Supervision) -> Tensor:
        """Return the loss of a batch."""
        layer = outputs.layers[self.layer]
        if len(self.teacher_shape) == 1 and layer.ndim > 2:
            layer = layer.mean(dim=(2, 3) if layer.ndim == 4 else 1)
        elif self.student_shape[1:] != self.teacher_shape[1:] and layer.ndim == 4:
            _, height, width = self.teacher_shape
            layer = functional.adaptive_avg_pool2d(layer, (height, width))
        return hint(self.projection(layer), given.features[self.key])


def _key(term: HintTerm) -> ArrayKey:
    return ArrayKey(term.teacher, f"feature/{term.feature}")
