"""What a model is called with, of rows as they are stored or as a view shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_float(inputs_B: Tensor) -> Tensor:
    """Return stored inputs as float32, uint8 divided by 255, other dtypes by nothing."""
    import torch

    # in place: of uint8 it is a copy
    return inputs_B.float().div_(255) if inputs_B.dtype == torch.uint8 else inputs_B.float()


def plain(inputs_B: Tensor) -> Tensor:
    """Return what a model is given: token ids as int64, all else as `to_float` has it."""
    import torch

    return inputs_B.long() if inputs_B.dtype in (torch.int32, torch.int64) else to_float(inputs_B)
