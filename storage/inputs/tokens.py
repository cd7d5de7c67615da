"""Tokens: ids of a vocabulary, stored as int32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from storage.inputs.base import Inputs, Stored

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from storage.format.specs import DatasetSpec


class Tokens(Inputs):
    """Stored as int32; a model is given int64, for that is what an embedding looks up."""

    name = "tokens"
    normalised = False
    tokenised = True
    dtypes = "integers"

    def takes(self, dtype: np.dtype) -> bool:
        return dtype.kind in "iu"

    def fault(self, stored_S: Stored, dataset: DatasetSpec) -> str | None:
        ids, vocabulary = np.asarray(stored_S), int(dataset.vocabulary or 0)
        if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary:
            return f"ids {ids.min()} to {ids.max()}, of a vocabulary of {vocabulary}"
        return None

    def arguments(self, shown_B: Tensor) -> Tensor:
        return shown_B.long()

    def blank(self, rows: int, shape: Sequence[int], device: torch.device) -> Tensor:
        import torch

        return torch.zeros(rows, *shape, dtype=torch.int64, device=device)
