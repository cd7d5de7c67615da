"""Classes drawn from a distribution, a pure function of (seed, key of the row, number of the draw).

Shapes: B rows, C classes, N draws, G bundles of W classes each: bundle g holds the classes g, g + G, g + 2 G, …;
E bundles and single classes, J classes of a row in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from storage.digests import GOLDEN, mixed, shifted, signed

STRIDE = signed(GOLDEN)  # of a generator, from one number to the next
BELOW_ONE = 1 - 2.0**-50


def uniforms(seed: int, keys_B: Tensor, num_draws: int) -> Tensor:
    """Return numbers in [0, 1), (B, N) float64 of 53 random bits, by integer arithmetic: the same on every device."""
    numbers_N = torch.arange(1, num_draws + 1, device=keys_B.device)
    # the seed is mixed first: near seeds share nothing
    row_B = mixed(keys_B ^ mixed(torch.tensor(seed, device=keys_B.device) + STRIDE))
    bits_BN = mixed(row_B[:, None] + numbers_N * STRIDE)
    fractions_BN: Tensor = shifted(bits_BN, 11).double() * 2.0**-53  # 64 − 11 bits: all that float64 holds
    return fractions_BN


def position_keys(keys_B: Tensor, positions: int) -> Tensor:
    """Return a key for each position of each row, (B, L) int64."""
    numbers_L = torch.arange(1, positions + 1, device=keys_B.device)
    return mixed(keys_B[:, None] + numbers_L * STRIDE)


def bundles(num_classes: int, wanted: int) -> tuple[int, int]:
    """Return (G, W) such that one look at all bundles, and another at `wanted` of them, cost about the same.

    >>> bundles(128_256, 64), bundles(1000, 10), bundles(10, 3)
    ((2914, 44), (100, 10), (10, 1))
    """
    # C / W sums, then W classes of each bundle wanted: alike where W² = C / wanted
    width = max(1, math.isqrt(num_classes // max(1, wanted)))
    return num_classes // width, width


def bundle_sums(weights_BC: Tensor, wanted: int) -> Tensor:
    """Return the weight of each bundle, and of each class that fills none, (B, E) with E = G + (C − G W)."""
    num_bundles, width = bundles(weights_BC.shape[1], wanted)
    whole = num_bundles * width
    sums_BG = weights_BC[:, :whole].unflatten(1, (width, num_bundles)).sum(1)
    return torch.cat([sums_BG, weights_BC[:, whole:]], 1)


def draw(sums_BE: Tensor, weigh: Callable[[Tensor], Tensor], uniforms_BN: Tensor, num_classes: int) -> Tensor:
    """Return classes drawn in proportion to weights, (B, N) int64; in a row without any weight, the last class.

    The inverse of the cumulative sum in float64, first over bundles, then within the bundle that was hit: a full
    cumulative sum over a vocabulary would cost more than the teacher's last layer.

    Args:
        sums_BE: `bundle_sums` of the weights, with N wanted.
        weigh: returns the weights of any classes, (B, J) int64 → (B, J).
        uniforms_BN: float64.
        num_classes: C.
    """
    num_rows, num_draws = uniforms_BN.shape
    num_bundles, width = bundles(num_classes, num_draws)
    whole = num_bundles * width
    edges_BE = sums_BE.double().cumsum(1)
    targets_BN = uniforms_BN * (edges_BE[:, -1:] * BELOW_ONE)  # never the last edge itself, by rounding
    # clamp: a row without any weight
    hit_BN = torch.searchsorted(edges_BE, targets_BN, right=True).clamp(max=edges_BE.shape[1] - 1)
    # what all before it weigh together
    below_BN = torch.where(hit_BN > 0, edges_BE.gather(1, (hit_BN - 1).clamp(min=0)), 0.0)

    in_bundle_BN = hit_BN < num_bundles
    steps_W = torch.arange(width, device=sums_BE.device) * num_bundles
    ids_BNW = torch.where(in_bundle_BN, hit_BN, 0)[:, :, None] + steps_W
    edges_BNW = weigh(ids_BNW.flatten(1)).view(num_rows, num_draws, width).double().cumsum(2)
    # The bundle's own last edge may end a rounding below its sum: then its last class with any weight is the one.
    within_BNW = edges_BNW <= torch.minimum(targets_BN - below_BN, edges_BNW[:, :, -1] * BELOW_ONE)[:, :, None]
    place_BN = within_BNW.sum(2).clamp(max=width - 1)
    ids_BN = ids_BNW.gather(2, place_BN[:, :, None])[:, :, 0]
    return torch.where(in_bundle_BN, ids_BN, hit_BN - num_bundles + whole)  # single classes follow the bundles


def counted(ids_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Return distinct ids, ascending, and how often each occurs, (B, N) int64 both.

    Where fewer than N are distinct, the last one is repeated with a count of 0.
    """
    ids_BN = ids_BN.sort(1).values
    new_BN = torch.ones_like(ids_BN, dtype=torch.bool)
    new_BN[:, 1:] = ids_BN[:, 1:] != ids_BN[:, :-1]
    place_BN = new_BN.long().cumsum(1) - 1
    distinct_BN = torch.zeros_like(ids_BN).scatter_(1, place_BN, ids_BN)
    counts_BN = torch.zeros_like(ids_BN).scatter_add_(1, place_BN, torch.ones_like(ids_BN))
    return distinct_BN.cummax(1).values, counts_BN  # ids ascend, so that the zeros behind them become the last
