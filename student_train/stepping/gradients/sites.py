"""One step's gradients of a student of tokens, whose logits never exist for a whole batch.

A batch of 32 rows of 1,024 tokens over 128k ids has 17 GB of logits in float32, and as much again for each thing that
a loss makes of them. So:

    1. the body runs once, tokens (B, L) → hidden states (B, L, D);
    2. of these, those of the N sites that count are picked, and cut off from the body;
    3. for a part of them at a time: head → logits → objective → backward, down to the hidden states. Only the part's
       logits exist. Its losses are means over its own n sites, so they weigh n / N;
    4. what came down is sent on, once, through the body.

The sum is the gradient of the mean over all N sites, whatever the size of a part, up to the order of additions.
Losses that compare rows with each other are no such means, and are refused before anything starts.

B rows, L positions, N sites that count, D width, C ids, K terms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from student_train.feed.batches import Batch
from student_train.losses.outputs import Outputs
from student_train.stepping.gradients.rows import WHOLE, Model, Part, Step, add_by_term
from student_train.students.parts import part_size


def accumulate_over_sites(
    model: Model,
    batch: Batch,
    *,
    autocast: torch.autocast,
    measure_shares: bool,
    of: Part = WHOLE,
    size: int | None = None,
) -> Step:
    """Add the gradients of a batch's objective to those of all that is trained, and return its losses.

    Args:
        model: of tokens; its forward gives hidden states in place of logits.
        batch: with the labels of each site.
        autocast: precision of forward passes.
        measure_shares: measure each term's share of the gradient, at the cost of a backward pass for each.
        of: what part of a step it is.
        size: of a part, in sites; by default from PART_BYTES.
    """
    sites_N = batch.sites()
    with autocast:
        outputs = model.forward(batch.inputs)
    whole = [outputs.logits_BC, *outputs.layers.values()]
    picked = [values.flatten(0, 1).index_select(0, sites_N) for values in whole]
    if not len(sites_N):  # a batch of prompts and padding teaches nothing
        zero = picked[0].sum().detach().float()  # of no site, on the device
        return Step(zero, [zero] * len(model.objective.names), None, 0)
    size = size or part_size(model.num_classes, sites_N.device)

    def backward(term: int | None, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
        """Accumulate the gradient of the objective, or of one of its terms; return all their values."""
        # leaves, in which the gradients of all parts add up
        cut_off = [values.detach().requires_grad_(values.requires_grad) for values in picked]
        values_K = None
        for start in range(0, len(sites_N), size):
            parts = [values[start : start + size] for values in cut_off]
            share = len(parts[0]) / len(sites_N)
            with autocast:
                seen = Outputs(model.student.scores(parts[0]), dict(zip(outputs.layers, parts[1:], strict=True)))
                given = batch.supervision_at(slice(start, start + size))
                losses = model.objective(seen, given, apart=term is not None)
            loss = losses.total if term is None else losses.parts[term]
            if loss.requires_grad:
                (of.share * share * loss).backward()
            found_K = share * torch.stack([losses.total.detach(), *losses.values])
            values_K = found_K if values_K is None else values_K + found_K
        reached = [(v, c.grad) for v, c in zip(picked, cut_off, strict=True) if c.grad is not None]
        if reached:
            torch.autograd.backward([v for v, _ in reached], [grad for _, grad in reached], retain_graph=keep)
        assert values_K is not None
        total, *values = values_K.unbind()
        return total, values

    if not measure_shares:
        return Step(*backward(of.term, keep=False), None, len(sites_N))
    return add_by_term(model, backward, len(sites_N))
