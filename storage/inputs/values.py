"""Values: floats of any shape, such as a table's columns or a frozen model's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from storage.inputs.base import Inputs, Stored

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from storage.format.specs import DatasetSpec


class Values(Inputs):
    """Stored as float32; a model is given them as they are."""

    name = "values"
    normalised = True
    tokenised = False
    dtypes = "floats"

    def takes(self, dtype: np.dtype) -> bool:
        return dtype.kind == "f"

    def fault(self, stored_S: Stored, dataset: DatasetSpec) -> str | None:
        return None if np.isfinite(np.asarray(stored_S)).all() else "inputs that are NaN or infinite"

    def arguments(self, shown_B: Tensor) -> Tensor:
        return shown_B.float()

    def blank(self, rows: int, shape: Sequence[int], device: torch.device) -> Tensor:
        import torch

        return torch.zeros(rows, *shape, device=device)
