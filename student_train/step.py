"""One step's gradients: forward, losses, backward; and now and then what each term's share of them is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from student_train.needs import Batch, Outputs
from student_train.objective import Objective


class Step(NamedTuple):
    """What a step's losses were, on the device.

    Attributes:
        loss: the objective, a scalar.
        values: each term before its weight.
        shares: norm of each term's own gradient over the sum of these norms; None where it was not asked for.
    """

    loss: Tensor
    values: list[Tensor]
    shares: Tensor | None


def accumulate_gradients(
    forward: Callable[[Tensor], Outputs],
    objective: Objective,
    batch: Batch,
    trained: Sequence[nn.Parameter],
    *,
    autocast: torch.autocast,
    measure_shares: bool,
) -> Step:
    """Add the gradients of a batch's objective to those of all that is trained, and return its losses."""
    with autocast:
        losses = objective(forward(batch.inputs), batch.supervision())
    shares = gradient_shares(losses.parts, trained) if measure_shares else None
    losses.total.backward()
    return Step(losses.total.detach(), losses.values, shares)


def gradient_shares(parts: Sequence[Tensor], trained: Sequence[nn.Parameter]) -> Tensor:
    """Return the norm of each term's gradient over all that is trained, divided by their sum: (terms,) float32.

    A term with a share near 0 teaches nothing, whatever its value. One backward pass for each term, so this is for one
    step of an epoch.
    """
    norms = []
    for part in parts:
        if part.requires_grad:
            gradients = torch.autograd.grad(part, trained, retain_graph=True, allow_unused=True)
            norms.append(torch.stack([g.float().norm() for g in gradients if g is not None]).norm())
        else:  # such as a distance between two constants
            norms.append(torch.zeros((), device=trained[0].device))
    norms_K = torch.stack(norms)
    return norms_K / norms_K.sum().clamp(min=torch.finfo(torch.float32).tiny)
