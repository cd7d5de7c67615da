"""How a batch becomes a view of its rows: as the teacher's shard did, to the byte. N fed rows, B rows of a batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from storage.views.shown import View
from student_train.feed.selection import Selection


class Shown:
    """One view of all fed rows, on the device of a feed.

    Args:
        selection: the rows; it has views.
        name: of the view.
        device: where batches are.
    """

    def __init__(self, selection: Selection, name: str, device: torch.device):
        assert selection.views is not None
        self.name = name
        self._view: View = selection.views.spec.view(name)
        self._keys_N = torch.from_numpy(selection.keys_N).to(device)
        self._partners_N: dict[torch.device, Tensor] = {}  # positions among the fed rows, there and on the host
        if self._view.mixing:
            partners_N = torch.from_numpy(_partners(selection, self._view))
            self._partners_N = {on: partners_N.to(on) for on in (self._keys_N.device, partners_N.device)}

    @property
    def mixes(self) -> bool:
        """Whether every row has a partner."""
        return bool(self._partners_N)

    def partners(self, rows_B: Tensor) -> Tensor:
        """Return the positions of some rows' partners, where the rows' own are: on the device or on the host."""
        return self._partners_N[rows_B.device].index_select(0, rows_B)

    def show(self, inputs: Tensor, partner_inputs: Tensor | None, rows_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a batch as the view shows it, uint8, and float32 weights of its rows' own labels, None for all 1."""
        keys_B = self._keys_N.index_select(0, rows_B)
        if partner_inputs is None:
            return self._view.show(inputs, keys_B).images, None
        partner_keys_B = self._keys_N.index_select(0, self.partners(rows_B))
        mixed = self._view.show(inputs, keys_B, partner_inputs, partner_keys_B)
        return mixed.images, mixed.own_weight_B


def _partners(selection: Selection, view: View) -> np.ndarray:
    """Return the position of each fed row's partner, (N,): in its shard and split, of which every row is fed."""
    stops_S = np.cumsum(selection.shard_sizes_S)
    parts = [
        start + view.partners(selection.keys_N[start:stop], selection.splits_N[start:stop])
        for start, stop in zip(stops_S - selection.shard_sizes_S, stops_S, strict=True)
    ]
    return np.concatenate(parts)
