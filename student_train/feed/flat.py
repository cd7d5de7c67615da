"""Rows of their own length in memory: one after another without padding, until a batch is cut from them.

P rows that are held, T items of all of them, B rows of a batch, L items of its longest row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from storage.inputs.ragged import Ragged
from storage.inputs.texts import PADDING


class Flat:
    """Rows one after another; batches of them are padded to their own longest row.

    >>> rows = Flat(torch.tensor([7, 8, 9, 4, 5, 6]), np.array([2, 1, 3]))
    >>> rows.pick(torch.tensor([2, 1]), 3)
    tensor([[ 4,  5,  6],
            [ 9, -1, -1]])

    Args:
        items_T: of row 0, then of row 1, …; memory behind the last is no row's.
        lengths_P: of each row.

    Attributes:
        items_T: as given.
        lengths_P: on the host, so that a batch's longest row is known without waiting for a device.
    """

    def __init__(self, items_T: Tensor, lengths_P: NDArray[np.int64]):
        self.items_T = items_T
        self.lengths_P = lengths_P
        self._starts = np.cumsum(lengths_P) - lengths_P  # on the host too: `put` waits for no device
        self._starts_P, self._ends_P = (
            torch.from_numpy(each).to(items_T.device) for each in (self._starts, self._starts + lengths_P)
        )

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.items_T.device

    def pick(self, places_B: Tensor, longest: int) -> Tensor:
        """Return some rows, (B, L), with PADDING behind each that is shorter than `longest`, which is L."""
        places_BL = self._starts_P[places_B, None] + torch.arange(longest, device=self.device)
        inside_BL = places_BL < self._ends_P[places_B, None]
        return self.items_T[places_BL.where(inside_BL, 0)].where(inside_BL, PADDING)  # outside, any place will do

    def items(self, places_B: Tensor, count: int) -> Tensor:
        """Return the items of some rows one after another, (N, …); `count` is N.

        >>> rows = Flat(torch.tensor([7, 8, 9, 4, 5, 6]), np.array([2, 1, 3]))
        >>> rows.items(torch.tensor([2, 1]), 4)
        tensor([4, 5, 6, 9])
        """
        starts_B = self._starts_P[places_B]
        lengths_B = self._ends_P[places_B] - starts_B
        # where an item lies: where its row begins here, less where it begins there, and how far on it is
        shifts_B = starts_B - (lengths_B.cumsum(0) - lengths_B)
        places_N = shifts_B.repeat_interleave(lengths_B, output_size=count) + torch.arange(count, device=self.device)
        return self.items_T.index_select(0, places_N)

    def put(self, rows: Ragged, start: int) -> None:
        """Lay rows down, the first of them as row `start`; each has the length that was said of it."""
        begin = int(self._starts[start]) if len(rows) else 0
        place = self.items_T[begin : begin + len(rows.flat_T)]
        if place.device.type == "cpu":
            place.numpy()[...] = rows.flat_T  # not by torch, to which memory taken in inference mode is closed here
        else:
            # W: torch warns of memory that is read-only
            place.copy_(torch.from_numpy(np.require(rows.flat_T, requirements="W")))


Kept = Tensor | Flat  # an array of rows in memory


def join_rows(parts: list[Tensor]) -> Tensor:
    """Return rows of several tensors as one; those of their own length are padded to the longest of all."""
    if parts[0].ndim > 1 and len({part.shape[1] for part in parts}) > 1:
        longest = max(part.shape[1] for part in parts)
        parts = [pad(part, (0, longest - part.shape[1]), value=PADDING) for part in parts]
    return torch.cat(parts)
