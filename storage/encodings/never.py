"""Classes that can never be: of score −∞, or so far below the likeliest that nothing else can be meant by it.

Many models mask a class with −10⁴, −10⁹ or the least number that there is. Were that a score like others, the steps of
8 bits would be 40 nats wide, and the deviation of a row's logits that of its masks. No probability tells it from −∞:
that of a class FAR below the likeliest is 0 in float32 up to temperature 9.

Shapes: B rows, C classes.
"""

from __future__ import annotations

from torch import Tensor

FAR = 1000.0  # nats below the row's likeliest class
NO_SCORE = -1e9  # stands for −∞ in sums: it has no power at any temperature, and 0 times it is 0


def far_below(lowest_B: Tensor, highest_B: Tensor) -> Tensor:
    """Return which rows have a class that can never be, from their least and their largest logit, bool (B,)."""
    return lowest_B < highest_B - FAR


def never(logits_BC: Tensor) -> Tensor | None:
    """Return which classes can never be, bool (B, C); None, after a look that is no more than a sum, if all can.

    Args:
        logits_BC: float32, of which no row is −∞ throughout; none is NaN or +∞.
    """
    lowest_B, highest_B = logits_BC.aminmax(dim=1)
    return logits_BC < highest_B[:, None] - FAR if far_below(lowest_B, highest_B).any() else None
