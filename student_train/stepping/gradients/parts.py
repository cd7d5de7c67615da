"""One step's gradients, a few rows of its batch at a time: what is kept for the backward pass is of these alone.

Losses are means over sites, so a part's gradient weighs what its sites are of the batch's: the sum is the gradient of
the mean over the batch, up to the order of additions, and never a mean of means. What compares rows with each other
(some losses, batch norm) is refused before anything starts. What draws random numbers draws others than for all rows.

A batch of 4 rows and 10 labelled positions in two parts, of 8 and of 2: 8/10 and 2/10 of the parts' own means.
"""

from __future__ import annotations

import torch
from torch import Tensor

from student_train.feed.batches import Batch
from student_train.stepping.gradients.rows import Model, Part, Step, add_by_term
from student_train.stepping.gradients.ways import Stepping


def accumulate_in_parts(
    way: Stepping, rows: int | None, model: Model, batch: Batch, *, autocast: torch.autocast, measure_shares: bool
) -> Step:
    """Add the gradients of a batch's objective to those of all that is trained, and return its losses.

    Args:
        way: how the student is stepped.
        rows: at a time; None: all.
        model: what steps.
        batch: of the step.
        autocast: precision of forward passes.
        measure_shares: measure each term's share of the gradient, at the cost of a pass over all parts for each.
    """
    if rows is None or len(batch.shown) <= rows:
        return way.accumulate(model, batch, autocast=autocast, measure_shares=measure_shares)
    parts = [(part, way.num_sites(part)) for part in batch.in_parts(rows)]
    labelled = [(part, sites) for part, sites in parts if sites] or parts[:1]
    total = sum(sites for _, sites in labelled)

    def backward(term: int | None, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
        """Accumulate the gradient of the objective, or of one of its terms; return all their values."""
        figures_K: Tensor | None = None
        for part, sites in labelled:
            share = sites / max(total, 1)  # there may be nothing to learn
            step = way.accumulate(model, part, autocast=autocast, measure_shares=False, of=Part(share, term))
            own_K = share * torch.stack([step.loss, *step.values])
            figures_K = own_K if figures_K is None else figures_K + own_K
        assert figures_K is not None
        loss, *values = figures_K.unbind()
        return loss, values

    if not measure_shares or not total:
        return Step(*backward(None, keep=False), None, total)
    return add_by_term(model, backward, total)
