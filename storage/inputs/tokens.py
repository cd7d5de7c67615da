"""Tokens: ids of a vocabulary, stored as int32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from storage.inputs.base import Inputs

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Tokens(Inputs):
    """Stored as int32; a model is given int64, for that is what an embedding looks up."""

    name = "tokens"
    normalised = False
    tokenised = True

    def arguments(self, shown_B: Tensor) -> Tensor:
        return shown_B.long()

    def blank(self, rows: int, shape: Sequence[int], device: torch.device) -> Tensor:
        import torch

        return torch.zeros(rows, *shape, dtype=torch.int64, device=device)
