"""Dense soft targets: the teacher's raw logits, whole, and features beside them.

Shapes: B rows, C classes, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from storage.options import Options

if TYPE_CHECKING:  # `cache status` reads specs, and should not pay two seconds for torch
    from torch import Tensor

Precision = Literal["fp32", "fp16", "bf16"]
BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}


class DenseEncoding(Options):
    """Raw logits at temperature 1; serves every loss at every temperature."""

    kind: Literal["dense"] = "dense"
    dtype: Precision = "fp32"

    @property
    def serves(self) -> frozenset[str]:
        """What a loss may ask of these targets."""
        return frozenset({"logits"})

    def bytes_per_row(self, num_classes: int) -> int:
        """Return the stored bytes per row before compression."""
        return num_classes * BYTES[self.dtype]

    def encode(self, logits_BC: Tensor) -> dict[str, Tensor]:
        """Return {"logits": (B, C)} as `dtype` on the same device; bf16 as its bits in uint16 (Zarr has no bf16).

        A finite logit beyond the range of fp16 becomes infinite; whoever stores it must look.
        """
        return {"logits": _stored(logits_BC, self.dtype)}

    def decode(self, arrays: dict[str, Tensor]) -> Tensor:
        """Return float32 logits (B, C) on the device of `arrays["logits"]`."""
        return _to_float32(arrays["logits"], self.dtype)


class FeatureEncoding(Options):
    """An intermediate tensor of the teacher, by the name of its layer.

    `pool = "mean"` averages all axes after the second, (B, D, H, W) → (B, D); "none" keeps the tensor whole.
    """

    layer: Annotated[str, Field(min_length=1)]
    pool: Literal["mean", "none"] = "mean"
    dtype: Precision = "fp16"

    def encode(self, feature_BD: Tensor) -> Tensor:
        """Return the pooled feature, (B, D) or (B, D, …), as `dtype` on the same device; bf16 as its bits in uint16."""
        if self.pool == "mean" and feature_BD.ndim > 2:
            feature_BD = feature_BD.float().flatten(2).mean(dim=2)
        return _stored(feature_BD, self.dtype)

    def decode(self, stored_BD: Tensor) -> Tensor:
        """Return the feature as float32, on the device of `stored_BD`."""
        return _to_float32(stored_BD, self.dtype)


def _stored(values: Tensor, dtype: Precision) -> Tensor:
    import torch

    if dtype == "bf16":
        return values.to(torch.bfloat16).view(torch.uint16)
    return values.to({"fp32": torch.float32, "fp16": torch.float16}[dtype])


def _to_float32(stored: Tensor, dtype: Precision) -> Tensor:
    import torch

    return stored.view(torch.bfloat16).float() if dtype == "bf16" else stored.float()
