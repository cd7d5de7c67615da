"""Pixels: uint8 of any shape; of (channels, height, width) there are views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from storage.inputs.arguments import to_float
from storage.inputs.base import Inputs

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

IMAGE_AXES = 3  # channels, height, width

OwnFilter = Literal["bilinear", "bicubic", "nearest"]
"""Filters of a model's own size, which Pillow and torch both have."""


def sides_of(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size, which of a square may be one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def resized(pixels_BCHW: Tensor, size: tuple[int, int], by: OwnFilter) -> Tensor:
    """Return pictures at a model's own size, (B, C, height, width).

    Args:
        pixels_BCHW: float32 in [0, 1], as the model's view shows them; those of this size are returned as they are.
        size: height and width.
        by: the filter, wider where pictures become smaller, as Pillow's is; a bicubic one's overshoot is cut off.
    """
    from torch.nn.functional import interpolate

    if tuple(pixels_BCHW.shape[2:]) == size:
        return pixels_BCHW
    smooth = by != "nearest"
    shown = interpolate(pixels_BCHW, size, mode=by if smooth else "nearest-exact", antialias=smooth)
    return shown.clamp(0, 1) if by == "bicubic" else shown


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
