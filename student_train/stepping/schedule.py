"""The learning rate of every step, as a pure function."""

from __future__ import annotations

from math import cos, pi
from typing import Literal


def learning_rate_at(
    step: int, *, peak: float, warmup_steps: float, total_steps: int, schedule: Literal["cosine", "constant"]
) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises in a straight line over `warmup_steps`, is `peak` right after, then stays or falls to 0 along half a
    cosine that would end one step after the last.

    Source: Loshchilov & Hutter 2016, eq. 5 without restarts, arXiv 1608.03983.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)  # above 0 from the first step on
    if schedule == "constant":
        return peak
    # max: the warm-up may be all there is
    return peak * 0.5 * (1 + cos(pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
