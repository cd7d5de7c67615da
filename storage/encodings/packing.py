"""Class ids and log-probabilities in few bits.

Ids are ascending and stored as differences, in the smallest type that holds the classes: uint8, uint16, and beyond
65,536 classes int32, for few operations of torch take uint32.

Shapes: B rows, K kept classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

LEVELS = 255  # steps in 8 bits


def id_dtype(num_classes: int) -> torch.dtype:
    """Return the smallest type that holds the numbers below `num_classes`."""
    return torch.uint8 if num_classes <= 2**8 else torch.uint16 if num_classes <= 2**16 else torch.int32


def to_differences(ids_BK: Tensor, num_classes: int) -> Tensor:
    """Return ascending ids as their differences, the first as it is, in `id_dtype`."""
    return torch.cat([ids_BK[:, :1], ids_BK.diff(dim=1)], 1).to(id_dtype(num_classes))


def unsigned(stored: Tensor) -> Tensor:
    """Return stored numbers as int64; uint16 may have travelled as int16, for few operations of torch take it."""
    wide = stored.to(torch.int64)
    return wide & 0xFFFF if stored.dtype == torch.int16 else wide


def from_differences(stored_BK: Tensor) -> Tensor:
    """Return the ids, int64."""
    return unsigned(stored_BK).cumsum(1)


def differences_fault(name: str, stored: np.ndarray[Any, Any], num_classes: int) -> str | None:
    """Return what is wrong with stored differences (S, …, K), or None."""
    wide = stored.astype(np.int64)
    last = wide.sum(axis=-1)
    if stored.dtype.kind not in "iu" or (wide < 0).any() or (last >= num_classes).any():
        return f"{name} names class {last.max()} of {num_classes}" if (wide >= 0).all() else f"{name} is not ascending"
    return None


def to_codes(log_p_BK: Tensor, kept_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return 8-bit steps below the row's largest, uint8 (B, K), and the step, float16 (B, 1).

    Args:
        log_p_BK: finite log-probabilities.
        kept_BK: bool; others do not widen the range, and are coded as the largest.
    """
    top_B1 = log_p_BK.masked_fill(~kept_BK, -torch.inf).amax(1, keepdim=True)
    below_BK = (top_B1 - log_p_BK).masked_fill(~kept_BK, 0.0)
    # Of the rounded step, so that its rounding costs nothing; at least float16's smallest normal number.
    step_B1 = (below_BK.amax(1, keepdim=True) / LEVELS).clamp(min=2.0**-14).to(torch.float16)
    return (below_BK / step_B1).round().clamp(max=LEVELS).to(torch.uint8), step_B1


def from_codes(codes_BK: Tensor, step_B1: Tensor) -> Tensor:
    """Return log-probabilities up to a constant of their row, float32."""
    return -codes_BK.float() * step_B1.float()
