"""Dense soft targets: the teacher's raw logits, whole, and features beside them.

Shapes: B rows, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from storage.encodings.base import Capability, Encoding
from storage.errors import BadTeacher
from storage.options import Options

if TYPE_CHECKING:  # `cache status` reads specs, and should not pay two seconds for torch
    from torch import Tensor

    from storage.targets.soft import DenseTargets

Precision = Literal["fp32", "fp16", "bf16"]
BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
LOGITS, SCALE = "logits", "scale"


class DenseEncoding(Encoding):
    """Raw logits at temperature 1; serves every loss that does not want draws, at every temperature.

    `int8` keeps 256 steps between each row's smallest and largest logit, which are kept in float32. Statistics are of
    the teacher's float32 logits, over the stored classes.
    """

    kind: Literal["dense"] = "dense"
    dtype: Literal[Precision, "int8"] = "fp32"

    @property
    def serves(self) -> tuple[str, ...]:
        return ("every logit, at every temperature",)

    def lacks(self, need: Capability) -> str | None:
        if need.name in ("draws", "stratified"):
            return f'encoding = {{ kind = "sparse", {"k = 16, " * (need.name == "stratified")}n = 50 }}'
        return None

    def array_names(self, needs: Iterable[Capability]) -> tuple[str, ...]:
        return (LOGITS, SCALE) if self.dtype == "int8" else (LOGITS,)

    def bytes_per_row(self, num_classes: int) -> int:
        # int8: beside the logits two float32, the scale
        logits = num_classes + 8 if self.dtype == "int8" else num_classes * BYTES[self.dtype]
        return logits + self.statistics_bytes_per_row

    def encode(self, logits_BC: Tensor, *, num_classes: int, labels_B: Tensor, keys_B: Tensor) -> dict[str, Tensor]:
        """Return LOGITS (B, C) as `dtype`, bf16 as its bits in uint16 (Zarr has no bf16); for int8 SCALE (B, 2) too.

        A finite logit beyond the range of fp16 becomes infinite; whoever stores it must look.
        """
        logits_BC = logits_BC[:, :num_classes]
        arrays = _to_int8(logits_BC) if self.dtype == "int8" else {LOGITS: _stored(logits_BC, self.dtype)}
        if not self.statistics:
            return arrays
        from storage.encodings.largest import Kept
        from storage.encodings.statistics import Rows, describe, in_blocks

        def block(logits_BC: Tensor, labels_B: Tensor) -> dict[str, Tensor]:
            none_BK = labels_B[:, None][:, :0]  # (B, 0): none is kept apart
            rows = Rows.of(logits_BC, self)
            return describe(rows, Kept(none_BK, none_BK.bool()), labels_B, self).arrays

        return arrays | in_blocks(block, logits_BC, labels_B)

    def decode(self, arrays: dict[str, Tensor], num_classes: int) -> DenseTargets:
        from storage.targets.soft import DenseTargets

        if self.dtype != "int8":
            return DenseTargets(_to_float32(arrays[LOGITS], self.dtype))
        step_B1, lowest_B1 = arrays[SCALE].split(1, dim=1)
        return DenseTargets((arrays[LOGITS].float() + 128) * step_B1 + lowest_B1)

    @property
    def bf16_arrays(self) -> frozenset[str]:
        return frozenset({LOGITS} if self.dtype == "bf16" else ())


class FeatureEncoding(Options):
    """An intermediate tensor of the teacher, by the name of its layer.

    `pool = "mean"` averages all axes after the second, (B, D, H, W) → (B, D); "none" keeps the tensor whole;
    "attention" keeps of a map where it has its energy, Σ_D z² with length 1, (B, D, H, W) → (B, H, W), which is what
    attention transfer compares: D times smaller.
    """

    layer: Annotated[str, Field(min_length=1)]
    pool: Literal["mean", "attention", "none"] = "mean"
    dtype: Precision = "fp16"

    def encode(self, feature_BD: Tensor) -> Tensor:
        """Return the pooled feature, (B, D) or (B, D, …), as `dtype` on the same device; bf16 as its bits in uint16.

        Raises:
            BadTeacher: an attention map is wanted of what is no map.
        """
        if self.pool == "mean" and feature_BD.ndim > 2:
            feature_BD = feature_BD.float().flatten(2).mean(dim=2)  # float32: a sum in 16 bits may overflow
        if self.pool == "attention":
            if feature_BD.ndim != 4:
                raise BadTeacher(
                    f"layer {self.layer!r} has no attention map",
                    found=f"shape {tuple(feature_BD.shape)}",
                    expected="(B, D, H, W)",
                    do='name a layer that gives maps, or pool = "none"',
                )
            energy_BHW = feature_BD.float().square().sum(dim=1)
            length_B11 = energy_BHW.square().sum(dim=(1, 2), keepdim=True).sqrt()
            feature_BD = energy_BHW / length_B11.clamp(min=1e-30)  # beyond fp16 otherwise
        return _stored(feature_BD, self.dtype)

    def decode(self, stored_BD: Tensor) -> Tensor:
        """Return the feature as float32, on the device of `stored_BD`."""
        return _to_float32(stored_BD, self.dtype)


def _to_int8(logits_BC: Tensor) -> dict[str, Tensor]:
    """Return LOGITS, −128 for the row's smallest and 127 for its largest, and SCALE: (step, smallest) in float32."""
    import torch

    lowest_B1, highest_B1 = logits_BC.float().aminmax(dim=1, keepdim=True)
    # at least something, to be divided by: a row of one value has no step
    step_B1 = ((highest_B1 - lowest_B1) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    codes_BC = ((logits_BC - lowest_B1) / step_B1).round() - 128
    return {LOGITS: codes_BC.clamp(-128, 127).to(torch.int8), SCALE: torch.cat([step_B1, lowest_B1], 1)}


def _stored(values: Tensor, dtype: Precision) -> Tensor:
    import torch

    if dtype == "bf16":
        return values.to(torch.bfloat16).view(torch.uint16)
    return values.to({"fp32": torch.float32, "fp16": torch.float16}[dtype])


def _to_float32(stored: Tensor, dtype: Precision) -> Tensor:
    import torch

    return stored.view(torch.bfloat16).float() if dtype == "bf16" else stored.float()
