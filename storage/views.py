"""A view is one augmentation of a sample: the very tensor that teacher and student both see (invariant 5).

There is one so far, `plain`: the stored input, pixels scaled to [0, 1]. What a model does after that, such as
normalising by its own mean and deviation, is the model's own affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from storage.digests import digest

if TYPE_CHECKING:
    from torch import Tensor

PLAIN = "plain"
FINGERPRINTED_ROWS = 8  # enough to notice another decoder, channel order or transform; costs microseconds


def to_float(inputs_B: Tensor) -> Tensor:
    """Return the plain view of stored inputs: float32, uint8 divided by 255, other dtypes by nothing."""
    import torch

    return inputs_B.float() / 255 if inputs_B.dtype == torch.uint8 else inputs_B.float()


def view_fingerprint(inputs_S: np.ndarray) -> str:
    """Return the fingerprint of what a model is shown: shape, dtype and bytes of the first rows of a shard."""
    first = np.ascontiguousarray(inputs_S[:FINGERPRINTED_ROWS])
    return digest(f"{first.dtype.str}{first.shape}".encode() + first.tobytes())
