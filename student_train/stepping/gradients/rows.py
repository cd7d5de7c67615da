"""One step's gradients: forward, losses, backward; and now and then what each term's share of them is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from student_train.feed.batches import Batch
from student_train.losses.objective import Objective
from student_train.losses.outputs import Outputs
from student_train.students import Student


class Step(NamedTuple):
    """What a step's losses were, on the device: of one student scalars, of M that are stacked (M,).

    Attributes:
        loss: the objective.
        values: each of the K terms before its weight.
        shares: norm of each term's own gradient over the student's weights, divided by the sum of these norms, (K,) or
            (M, K); None where it was not asked for.
        rows: how many sites these are means over.
    """

    loss: Tensor
    values: Sequence[Tensor]
    shares: Tensor | None
    rows: int


class Part(NamedTuple):
    """What part of a step's gradient is added.

    Attributes:
        share: of the batch's sites.
        term: of the objective; None: all of it.
    """

    share: float = 1.0
    term: int | None = None


WHOLE = Part()


class Model(NamedTuple):
    """What a step works with.

    Attributes:
        student: in training mode.
        forward: from inputs to its outputs, perhaps compiled.
        objective: its losses.
        trained: parameters of both.
        num_classes: logits of a row or position.
    """

    student: Student
    forward: Callable[[Tensor], Outputs]
    objective: Objective
    trained: Sequence[nn.Parameter]
    num_classes: int


def accumulate_gradients(
    model: Model, batch: Batch, *, autocast: torch.autocast, measure_shares: bool, of: Part = WHOLE
) -> Step:
    """Add the gradients of a batch's objective to those of all that is trained, and return its losses.

    Args:
        model: what steps.
        batch: all of a step's, or a part of it.
        autocast: precision of the forward pass.
        measure_shares: measure each term's share of the gradient; of a whole batch alone.
        of: what part it is.
    """
    with autocast:
        apart = measure_shares or of.term is not None
        losses = model.objective(model.forward(batch.inputs), batch.supervision(), apart=apart)
    shares = None
    if measure_shares:
        shares = accumulate_by_term(
            losses.parts, model.trained, of_student=sum(p.requires_grad for p in model.student.parameters())
        )
    else:
        loss = losses.total if of.term is None else losses.parts[of.term]
        if loss.requires_grad or of.term is None:
            (loss if of.share == 1 else of.share * loss).backward()
    return Step(losses.total.detach(), losses.values, shares, len(batch.inputs))


def accumulate_by_term(parts: Sequence[Tensor], trained: Sequence[nn.Parameter], *, of_student: int) -> Tensor:
    """Add the gradient of a sum of terms, and return the norm of each term's own over the sum of all norms.

    A term with a share near 0 teaches the student nothing, whatever its value and whatever its own projection learns.
    One backward pass for each term, so this is for one step of an epoch.

    Args:
        parts: scalars whose sum is the objective.
        trained: parameters, whose `grad` is added to.
        of_student: how many of them, the first ones, are the student's. Norms are over these.

    Returns:
        Shares, (terms,) float32.
    """
    norms = []
    for number, part in enumerate(parts, start=1):
        norm = torch.zeros((), device=trained[0].device)
        if part.requires_grad:  # a distance between two constants has no gradient
            # the graph is kept for the next term
            gradients = torch.autograd.grad(part, trained, retain_graph=number < len(parts), allow_unused=True)
            for parameter, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            norm = gradient_norm(gradients[:of_student], norm)
        norms.append(norm)
    return shares_of(norms)


def gradient_norm(gradients: Sequence[Tensor | None], zero: Tensor) -> Tensor:
    """Return the norm over several gradients, a scalar; `zero` if there is none."""
    there = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return torch.stack(there).norm() if there else zero


def shares_of(norms: Sequence[Tensor]) -> Tensor:
    """Return each norm divided by the sum of all, (terms,) float32."""
    norms_K = torch.stack(list(norms))
    return norms_K / norms_K.sum().clamp(min=torch.finfo(torch.float32).tiny)  # all may be 0


def add_by_term(model: Model, backward: Callable[..., tuple[Tensor, list[Tensor]]], num_sites: int) -> Step:
    """Add up the gradients of the terms one by one, and measure each.

    Args:
        model: what steps.
        backward: from a term, and whether another is to come, to the objective's value and all terms'; it adds the
            term's gradient.
        num_sites: that these are means over.
    """
    # what was there before: here each term is looked at by itself
    before: Sequence[Tensor | None] = [parameter.grad for parameter in model.trained]
    norms, num_terms = [], len(model.objective.names)
    for term in range(num_terms):
        for parameter in model.trained:
            parameter.grad = None
        total, values = backward(term, keep=term + 1 < num_terms)
        norms.append(gradient_norm([parameter.grad for parameter in model.student.parameters()], total.new_zeros(())))
        summed = [
            old if parameter.grad is None else parameter.grad if old is None else old + parameter.grad
            for old, parameter in zip(before, model.trained, strict=True)
        ]
        before = summed
    for parameter, gradient in zip(model.trained, before, strict=True):
        parameter.grad = gradient
    return Step(total, values, shares_of(norms), num_sites)
