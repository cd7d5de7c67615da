"""The gradients of one step of stacked students: of whole rows at once, or a part of the sites at a time.

What `student_train/stepping/gradients/` do for one student; the same in the end, up to the order
of additions.

M students, P parameters of each, N sites that count, K terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from student_train.feed.batches import Batch
from student_train.losses.outputs import Outputs
from student_train.stepping.gradients.ways import WAYS
from student_train.stepping.stack.model import StackedModel
from student_train.stepping.stack.weights import StackedWeights
from student_train.students.parts import part_size
from student_train.tasks import Way


class StackedStep(NamedTuple):
    """What a step of M students gave.

    Attributes:
        grads_MP: of each student's objective.
        values_MK: each of its terms before its weight.
        shares_MK: norm of each term's own gradient over the student's weights, divided by the sum of these norms; None
            where it was not asked for.
        rows: how many sites these are means over.
    """

    grads_MP: Tensor
    values_MK: Tensor
    shares_MK: Tensor | None
    rows: int


# From one term, or None for all, and whether to keep the graph for more: its gradient (M, P), and all values (M, K).
Gradient = Callable[[int | None, bool], tuple[Tensor, Tensor]]


def stacked_gradients(
    model: StackedModel,
    weights: StackedWeights,
    batches: Sequence[Batch],
    *,
    of_student: int,
    measure_shares: bool,
    rows_at_once: int | None = None,
) -> StackedStep:
    """Return the gradients of all students' objectives on the same rows.

    Args:
        model: the students.
        weights: theirs.
        batches: one for each view that is seen.
        of_student: how many of a row's weights, the first, are the student's. Norms are over these.
        measure_shares: measure each term's share of the gradients, at the cost of a backward pass for each.
        rows_at_once: of a batch; None: all.
    """
    if rows_at_once is None or len(batches[0].shown) <= rows_at_once:
        gradient, rows = OVER[model.way](model, weights, batches, measure_shares)
    else:
        gradient, rows = _in_parts(model, weights, batches, rows_at_once)
    if not measure_shares:
        return StackedStep(*gradient(None, False), None, rows)
    terms = model.term_weights_MK.shape[1]
    # the graph is kept while a term is to come
    grads_MP, values_MK = gradient(0, terms > 1)
    norms = [grads_MP[:, :of_student].norm(dim=1)]
    for term in range(1, terms):
        own_MP, _ = gradient(term, term + 1 < terms)
        norms.append(own_MP[:, :of_student].norm(dim=1))
        grads_MP += own_MP
    norms_MK = torch.stack(norms, dim=1)
    shares_MK = norms_MK / norms_MK.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return StackedStep(grads_MP, values_MK, shares_MK, rows)


def _over_rows(
    model: StackedModel, weights: StackedWeights, batches: Sequence[Batch], apart: bool
) -> tuple[Gradient, int]:
    with model.autocast:
        given = [batch.supervision() for batch in batches]
        values = model.terms(model.outputs(batches), given, apart=apart)

    def gradient(term: int | None, keep: bool) -> tuple[Tensor, Tensor]:
        grads_MP = torch.zeros_like(weights.values_MP)
        weights.add_gradients(grads_MP, [_loss(model, values, term)], keep_graph=keep)
        return grads_MP, torch.stack(values, dim=1).detach()

    return gradient, len(batches[0].inputs)


def _over_sites(
    model: StackedModel, weights: StackedWeights, batches: Sequence[Batch], apart: bool
) -> tuple[Gradient, int]:
    """Run the bodies; heads and losses are run on a part of the sites at a time, as `gradients/sites.py` explains."""
    sites_N = batches[0].sites()
    with model.autocast:
        outputs = model.outputs(batches)
    whole = [outputs.logits_BC, *outputs.layers.values()]
    picked = [values.flatten(1, 2).index_select(1, sites_N) for values in whole]  # (M, N, …)
    size = part_size(model.num_classes, sites_N.device)  # not less than of one student: weights are read for each

    def gradient(term: int | None, keep: bool) -> tuple[Tensor, Tensor]:
        grads_MP, values_MK = torch.zeros_like(weights.values_MP), torch.zeros_like(model.term_weights_MK)
        down: dict[int, Tensor] = {}  # by place in `picked`; nothing of what no loss reaches
        for start in range(0, len(sites_N), size):
            at = slice(start, start + size)
            parts = [values[:, at].detach().requires_grad_(values.requires_grad) for values in picked]
            share = parts[0].shape[1] / len(sites_N)
            with model.autocast:
                seen = Outputs(model.scores(parts[0]), dict(zip(outputs.layers, parts[1:], strict=True)))
                given = [batch.supervision_at(at) for batch in batches]
                part = [share * values_M for values_M in model.terms(seen, given, apart=term is not None)]
            found = weights.add_gradients(grads_MP, [_loss(model, part, term)], beside=parts)
            for place, grad in enumerate(found):
                if grad is not None:
                    if place not in down:
                        down[place] = torch.zeros_like(picked[place])
                    down[place][:, at] = grad
            values_MK += torch.stack(part, dim=1).detach()
        # on through the bodies, once
        weights.add_gradients(grads_MP, [picked[place] for place in down], list(down.values()), keep_graph=keep)
        return grads_MP, values_MK

    return gradient, len(sites_N)


def _in_parts(
    model: StackedModel, weights: StackedWeights, batches: Sequence[Batch], rows: int
) -> tuple[Gradient, int]:
    """Run a few rows of each batch at a time, as `gradients/parts.py` explains."""
    in_parts = list(zip(*(batch.in_parts(rows) for batch in batches), strict=True))
    parts = [(part, WAYS[model.way].num_sites(part[0])) for part in in_parts]
    total = sum(sites for _, sites in parts)

    def gradient(term: int | None, keep: bool) -> tuple[Tensor, Tensor]:
        grads_MP, values_MK = torch.zeros_like(weights.values_MP), torch.zeros_like(model.term_weights_MK)
        for part, sites in parts:
            if sites:
                of_part, _ = OVER[model.way](model, weights, part, term is not None)
                own_MP, own_MK = of_part(term, False)
                grads_MP.add_(own_MP, alpha=sites / total)
                values_MK += sites / total * own_MK
        return grads_MP, values_MK

    return gradient, total


# What `stepping.gradients.ways` has for one student.
OVER: dict[Way, Callable[[StackedModel, StackedWeights, Sequence[Batch], bool], tuple[Gradient, int]]] = {
    "rows": _over_rows,
    "sites": _over_sites,
}


def _loss(model: StackedModel, values: Sequence[Tensor], term: int | None) -> Tensor:
    """Return the sum of all students' objectives, or of one of their terms: they share no weights."""
    terms = range(len(values)) if term is None else [term]
    return torch.stack([(model.term_weights_MK[:, k] * values[k]).sum() for k in terms]).sum()
