"""The largest classes of a row, without sorting a vocabulary.

Shapes: B rows, C classes, K kept classes, G bundles of W classes each: bundle g holds the classes g, g + G, g + 2 G, …
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from storage.encodings.draws import bundles


class Kept(NamedTuple):
    """The classes that are stored exactly.

    Attributes:
        ids_BK: int64, ascending; where fewer than K are kept, the last is repeated.
        real_BK: bool, False for such repetitions.
    """

    ids_BK: Tensor
    real_BK: Tensor

    @classmethod
    def of(cls, ids_BK: Tensor, real_BK: Tensor) -> Kept:
        """Return kept classes from ids in any order, at least one of them real in each row (or K = 0).

        A row of NaN has none; what becomes of it, is refused.
        """
        if not ids_BK.shape[1]:
            return cls(ids_BK, real_BK)
        # (B, 1): what padding repeats
        last_B1 = ids_BK.masked_fill(~real_BK, -1).amax(1, keepdim=True).clamp(min=0)
        ids_BK = torch.where(real_BK, ids_BK, last_B1).sort(1).values
        real_BK = torch.ones_like(real_BK)
        real_BK[:, 1:] = ids_BK[:, 1:] != ids_BK[:, :-1]
        return cls(ids_BK, real_BK)

    def holds(self, ids_BJ: Tensor) -> Tensor:
        """Return which classes are among the kept, bool (B, J)."""
        if not self.ids_BK.shape[1]:
            return torch.zeros_like(ids_BJ, dtype=torch.bool)
        # behind the last there is nothing to be equal to
        at_BJ = torch.searchsorted(self.ids_BK, ids_BJ).clamp_(max=self.ids_BK.shape[1] - 1)
        return self.ids_BK.gather(1, at_BJ) == ids_BJ


def bundle_maxima(values_BC: Tensor, k: int) -> Tensor:
    """Return the largest value of each bundle, and each that fills none, (B, E) with E = G + (C − G W)."""
    num_bundles, width = bundles(values_BC.shape[1], k)
    whole = num_bundles * width
    maxima_BG = values_BC[:, :whole].unflatten(1, (width, num_bundles)).amax(1)
    return torch.cat([maxima_BG, values_BC[:, whole:]], 1)


def largest(values_BC: Tensor, k: int, maxima_BE: Tensor) -> Tensor:
    """Return the ids of the k largest values, (B, K) int64, the largest first.

    They lie in the k bundles with the largest maxima (`bundle_maxima`). Two small selections and one pass over the row
    take a tenth of `topk`'s time on a CPU, which copies each value with its index before it selects.
    """
    num_classes = values_BC.shape[1]
    num_bundles, width = bundles(num_classes, k)
    if width == 1 or k == 0:  # a bundle is a class: nothing to gain
        return values_BC.topk(k, dim=1).indices
    # not among the classes that fill no bundle: all of those are looked at
    best_BK = maxima_BE[:, :num_bundles].topk(min(k, num_bundles), dim=1).indices
    steps_W = torch.arange(width, device=values_BC.device) * num_bundles
    left_L = torch.arange(num_bundles * width, num_classes, device=values_BC.device).expand(len(values_BC), -1)
    # (B, J): all classes of the K bundles, and those of none
    ids_BJ = torch.cat([(best_BK[:, :, None] + steps_W).flatten(1), left_L], 1)
    chosen_BK = values_BC.gather(1, ids_BJ).topk(k, dim=1).indices
    return ids_BJ.gather(1, chosen_BK)
