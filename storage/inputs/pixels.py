"""Pixels: uint8 of any shape; of (channels, height, width) there are views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from storage.inputs.arguments import to_float
from storage.inputs.base import Inputs

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

IMAGE_AXES = 3  # channels, height, width


class Pixels(Inputs):
    """Stored as uint8; a model is given float32 in [0, 1]."""

    name = "pixels"
    normalised = True
    scaled = True
    tokenised = False
    dtypes = "uint8"
    misfit_help = "; set `size` to resize"

    def takes(self, dtype: np.dtype) -> bool:
        return dtype.name == self.dtypes

    def has_views(self, shape: Sequence[int]) -> bool:
        return len(shape) == IMAGE_AXES

    def arguments(self, shown_B: Tensor) -> Tensor:
        return to_float(shown_B)  # a view that mixes two images gives floats already

    def blank(self, rows: int, shape: Sequence[int], device: torch.device) -> Tensor:
        import torch

        return torch.zeros(rows, *shape, device=device)
