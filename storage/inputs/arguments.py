"""What a model is called with, of rows as they are stored or as a view shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_float(inputs_B: Tensor) -> Tensor:
    """Return stored inputs as float32, uint8 divided by 255, other dtypes by nothing."""
    import torch

    if inputs_B.dtype != torch.uint8:
        return inputs_B.float()
    floats_B = inputs_B.float()  # a copy, so in place from here on
    if floats_B.device.type in ("cpu", "meta"):
        return floats_B.div_(255)
    # Given a number, a GPU multiplies by its reciprocal, a last bit off the CPU's quotient; given a tensor, it divides.
    return floats_B.div_(torch.full((), 255.0, device=floats_B.device))


def plain(inputs_B: Tensor) -> Tensor:
    """Return what a model is given: token ids as int64, all else as `to_float` has it."""
    import torch

    return inputs_B.long() if inputs_B.dtype in (torch.int32, torch.int64) else to_float(inputs_B)
