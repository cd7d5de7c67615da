"""Dense soft targets: the teacher's raw logits, whole, and features beside them.

Shapes: B rows, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from storage.encodings.base import Capability, Encoding
from storage.options import Options

if TYPE_CHECKING:  # `cache status` reads specs, and should not pay two seconds for torch
    from torch import Tensor

    from storage.encodings.targets import DenseTargets

Precision = Literal["fp32", "fp16", "bf16"]
BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}


class DenseEncoding(Encoding):
    """Raw logits at temperature 1; serves every loss that does not want draws, at every temperature."""

    kind: Literal["dense"] = "dense"
    dtype: Precision = "fp32"

    @property
    def serves(self) -> tuple[str, ...]:
        return ("every logit, at every temperature",)

    def lacks(self, need: Capability) -> str | None:
        sampled = need.name in ("draws", "stratified")
        return 'encoding = { kind = "sparse", n = 50 }' if sampled else None

    def array_names(self, needs: Iterable[Capability]) -> tuple[str, ...]:
        return ("logits",)

    def bytes_per_row(self, num_classes: int) -> int:
        return num_classes * BYTES[self.dtype]

    def encode(self, logits_BC: Tensor, *, num_classes: int, labels_B: Tensor, keys_B: Tensor) -> dict[str, Tensor]:
        """Return {"logits": (B, C)} as `dtype` on the same device; bf16 as its bits in uint16 (Zarr has no bf16).

        A finite logit beyond the range of fp16 becomes infinite; whoever stores it must look.
        """
        return {"logits": _stored(logits_BC[:, :num_classes], self.dtype)}

    def decode(self, arrays: dict[str, Tensor], num_classes: int) -> DenseTargets:
        from storage.encodings.targets import DenseTargets

        return DenseTargets(_to_float32(arrays["logits"], self.dtype))


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
