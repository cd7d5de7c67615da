"""Logits of a model that gives probabilities: their logarithms, which are its logits but for a shift of each row.

Shapes: B rows, `sites` the axes of a row's sites (storage.tasks), C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.errors import BadTeacher

if TYPE_CHECKING:
    from torch import Tensor

OFF_ONE = 1e-2  # by which a row's sum may be off: of half precision, or of weights in int8


def logits_from(probabilities: Tensor, name: str) -> Tensor:
    """Return the logarithms of probabilities, (B, *sites, C) float32.

    A zero is one that was too small for the model's precision, or of a forest that no tree voted for; it is no class
    that can never be, which −inf would say. It is taken as the smallest float32 with all its digits, 1.2e-38: a logit
    of −87.3. NaN stays NaN, and the shard is refused for it.

    Args:
        probabilities: of a model named `name`, any float dtype.
        name: for messages.

    Raises:
        BadTeacher: they are none: a row is negative somewhere, or does not sum to 1.
    """
    import torch

    values = probabilities.float()
    off = (values.sum(-1) - 1).abs().nan_to_num(0.0)
    if bool((values < 0).any()) or bool((off > OFF_ONE).any()):
        raise BadTeacher(
            f"teacher {name} returns no probabilities",
            found=f"numbers from {values.min().item():.3g} to {values.max().item():.3g}, rows whose sums are up to "
            f"{off.max().item():.3g} off 1",
            expected="rows that are non-negative and sum to 1",
            do='`output = "logits"` of scores before a softmax; a sigmoid for each class has no place here',
        )
    return values.clamp_min(torch.finfo(torch.float32).tiny).log()
