"""Mixup and CutMix: two rows become one, and both labels count.

A partner is another readable row of the same shard and split, so that a shard can be shown without any other, and a
training row never meets one that is held back. It is a pure function of (seed, sample, view) and of the shard's rows,
which are like the dataset's though folders lie by class: a job that mixes lays rows in no order (docs/adr/0018).

Shapes: B rows, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.views.numbers import ONE, UNIT, Rolls, beta_steps, fixed_point
from storage.views.options import Cutmix, Mixup, Transform
from storage.views.transforms import blend, box, pick

PARTNER_PLACE, CHOICE_PLACE = -1, -2  # places of dice that belong to no transform


class Mixed(NamedTuple):
    """Images, and what is left of their own labels.

    Attributes:
        images: uint8, (B, C, H, W).
        own_weight_B: float32 in [0, 1], of a row's own label; the rest is its partner's.
    """

    images: Tensor
    own_weight_B: Tensor


def choose_partners(keys_S: NDArray[np.int64], splits_S: NDArray[Any], *, seed: int, view: int) -> NDArray[np.int64]:
    """Return the position of each row's partner among all readable rows of a shard.

    Args:
        keys_S: of the samples.
        splits_S: of any type; a row that is alone in its split is its own partner.
        seed, view: of the promise, and the view's number.
    """
    rolls = Rolls(torch.from_numpy(keys_S), seed=seed, view=view, place=PARTNER_PLACE)
    partners_S = np.arange(len(keys_S))
    for split in np.unique(splits_S):
        rows_M = np.flatnonzero(splits_S == split)
        if (others := len(rows_M) - 1) > 0:
            step_M = 1 + rolls.below(others, 0).numpy()[rows_M]  # at least 1: none is its own partner
            partners_S[rows_M] = rows_M[(np.arange(len(rows_M)) + step_M) % len(rows_M)]
    return partners_S


def mix(
    images: Tensor, partners: Tensor, keys_B: Tensor, steps: dict[int, Transform], *, seed: int, view: int
) -> Mixed:
    """Return each image mixed with its partner, by one of the steps at most.

    Args:
        images, partners: uint8, (B, C, H, W), all other transforms done.
        keys_B: of the images.
        steps: place in the list of transforms → mixing transform.
        seed, view: of the promise, and the view's number.
    """
    roll_B = Rolls(keys_B, seed=seed, view=view, place=CHOICE_PLACE).bits(0) >> 8  # 24 bits, as ONE has
    mixed, own_weight_B = images, torch.ones(len(images), device=images.device)
    start = 0
    for place, options in steps.items():
        # each step has a part of the roll's range, so that one at most applies
        stop = min(ONE, start + fixed_point(options.probability))  # type: ignore[attr-defined]
        chosen_B = (roll_B >= start) & (roll_B < stop)
        start = stop
        result = MIXERS[type(options)](images, partners, options, Rolls(keys_B, seed=seed, view=view, place=place))
        mixed = pick(chosen_B[:, None, None, None], result.images, mixed)
        own_weight_B = torch.where(chosen_B, result.own_weight_B, own_weight_B)
    return Mixed(mixed, own_weight_B)


def mixup(images: Tensor, partners: Tensor, options: Mixup, rolls: Rolls) -> Mixed:
    """Return λ x + (1 - λ) y. Source: Zhang et al. 2018."""
    own_B = _weight(options.alpha, rolls)
    mixed = blend(images, partners, own_B.short()[:, None, None, None])
    return Mixed(mixed, own_B.float() / UNIT)


def cutmix(images: Tensor, partners: Tensor, options: Cutmix, rolls: Rolls) -> Mixed:
    """Return images with a box of their partners; labels weigh by area. Source: Yun et al. 2019."""
    _, _, height, width = images.shape
    sides = torch.tensor(_sides(height, width), device=images.device)  # (UNIT + 1, 2)
    height_B, width_B = sides[_weight(options.alpha, rolls)].unbind(1)
    # purposes 1 and 2: λ is rolled by 0
    cut = box(images, rolls.below(height, 1), rolls.below(width, 2), height_B, width_B)
    kept_B = (~cut).sum(dim=(1, 2, 3))
    # A GPU divides by multiplying, which in float32 is another number now and then; from float64 both round to one.
    return Mixed(pick(cut, partners, images), (kept_B.double() / (height * width)).float())


MIXERS: dict[type, Callable[[Tensor, Tensor, Any, Rolls], Mixed]] = {Mixup: mixup, Cutmix: cutmix}


def _weight(alpha: float, rolls: Rolls) -> Tensor:
    """Return λ ~ Beta(alpha, alpha) for each row, (B,) int64 of UNIT."""
    roll_B = rolls.bits(0) >> 8  # 24 bits, as ONE has
    steps = torch.tensor(beta_steps(alpha), device=roll_B.device)
    return torch.searchsorted(steps, roll_B, right=True)


@lru_cache(maxsize=64)
def _sides(height: int, width: int) -> list[list[int]]:
    """Return height and width of a box of area 1 - λ, in proportion to the image's, for each λ of UNIT."""
    return [[isqrt(side * side * (UNIT - own) // UNIT) for side in (height, width)] for own in range(UNIT + 1)]
