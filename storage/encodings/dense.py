"""Dense soft targets: the teacher's raw logits, whole, and features beside them.

Shapes: B rows, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from storage.encodings.base import NO_VECTORS, USES_NEVER, Capability, Encoding, Told, floats
from storage.errors import BadTeacher
from storage.options import Options

if TYPE_CHECKING:  # `cache status` reads specs, and should not pay two seconds for torch
    import numpy as np
    from torch import Tensor

    from storage.targets.soft import DenseTargets

Precision = Literal["fp32", "fp16", "bf16"]
BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "bf16": 2}
LOGITS, SCALE = "logits", "scale"


class DenseEncoding(Encoding):
    """Raw logits at temperature 1; serves every loss that does not want draws, at every temperature.

    `int8` keeps 256 steps between each row's smallest and largest logit, which are kept in float32. Statistics are of
    the teacher's float32 logits, over the stored classes.

    A class that can never be (`encodings.never`) is −∞ where the teacher says so, where `dtype` has no room for its
    score, and in int8, where it is no part of a row's steps.
    """

    kind: Literal["dense"] = "dense"
    dtype: Literal[Precision, "int8"] = "fp32"

    @property
    def serves(self) -> tuple[str, ...]:
        return ("every logit, at every temperature",)

    def lacks(self, need: Capability) -> str | None:
        if need.name == "vectors":
            return NO_VECTORS
        if need.name in ("draws", "stratified"):
            return f'encoding = {{ kind = "sparse", {"k = 16, " * (need.name == "stratified")}n = 50 }}'
        return None

    def stored(self, num_classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        dtype = {"fp32": "float32", "fp16": "float16", "bf16": "uint16", "int8": "int8"}[self.dtype]
        scale: dict[str, tuple[str, tuple[int, ...]]] = {SCALE: ("float32", (2,))} if self.dtype == "int8" else {}
        return {LOGITS: (dtype, (num_classes,)), **scale, **super().stored(num_classes)}

    def array_names(self, needs: Iterable[Capability]) -> tuple[str, ...]:
        return (LOGITS, SCALE) if self.dtype == "int8" else (LOGITS,)

    def bytes_per_row(self, num_classes: int) -> int:
        # int8: beside the logits two float32, the scale
        logits = num_classes + 8 if self.dtype == "int8" else num_classes * BYTES[self.dtype]
        return logits + self.statistics_bytes_per_row

    def encode_and_tell(
        self, logits_BC: Tensor, *, num_classes: int, labels_B: Tensor, keys_B: Tensor
    ) -> tuple[dict[str, Tensor], Told]:
        """Return LOGITS (B, C) as `dtype`, bf16 as its bits in uint16 (Zarr has no bf16); for int8 SCALE (B, 2) too.

        A logit for which there is no room becomes +∞, unless it is of a class that can never be; whoever stores it must
        look.
        """
        from storage.encodings.largest import Kept
        from storage.encodings.statistics import Rows, describe, in_blocks

        def block(logits_BV: Tensor, labels_B: Tensor) -> tuple[dict[str, Tensor], Told]:
            logits_BC = logits_BV[:, :num_classes]
            none_BK = labels_B[:, None][:, :0]  # (B, 0): none is kept apart
            rows = Rows.of(logits_BC, self)
            arrays = _to_int8(logits_BC) if self.dtype == "int8" else {LOGITS: _rounded(logits_BC, self.dtype)}
            described = describe(rows, Kept(none_BK, none_BK.bool()), labels_B, self)
            return arrays | described.arrays, rows.told(described, logits_BV[:, num_classes:])

        return in_blocks(block, logits_BC, labels_B)

    def decode(self, arrays: dict[str, Tensor], num_classes: int) -> DenseTargets:
        import torch

        from storage.targets.soft import DenseTargets

        if self.dtype != "int8":
            return DenseTargets(_to_float32(arrays[LOGITS], self.dtype))
        step_B1, lowest_B1 = arrays[SCALE].split(1, dim=1)
        codes_BC, some_never_B1 = arrays[LOGITS].float(), step_B1 < 0
        logits_BC = (codes_BC + torch.where(some_never_B1, 127.0, 128.0)) * step_B1.abs() + lowest_B1
        return DenseTargets(logits_BC.masked_fill_(some_never_B1 & (codes_BC == -128), -torch.inf))

    @property
    def bf16_arrays(self) -> frozenset[str]:
        return frozenset({LOGITS} if self.dtype == "bf16" else ())

    def uses(self, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
        if self.dtype == "int8":
            return (USES_NEVER,) if (arrays[SCALE][..., 0] < 0).any() else ()
        return (USES_NEVER,) if (floats(arrays[LOGITS], bf16=self.dtype == "bf16") == -float("inf")).any() else ()

    def fault(self, arrays: Mapping[str, np.ndarray], num_classes: int, uses: Collection[str] = ()) -> str | None:
        if USES_NEVER not in uses or LOGITS not in arrays or self.dtype == "int8":
            return super().fault(arrays, num_classes, uses)
        import numpy as np

        # of each site one class can be; NaN is no less than anything
        highest = floats(arrays[LOGITS], bf16=self.dtype == "bf16").max(axis=-1, initial=-np.inf)
        if not np.isfinite(highest).all():
            return f"{LOGITS} holds NaN, infinity or a row without any class that can be"
        return super().fault({name: array for name, array in arrays.items() if name != LOGITS}, num_classes, uses)


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
    """Return LOGITS, −128 for the row's smallest and 127 for its largest, and SCALE: (step, smallest) in float32.

    In a row with classes that can never be, −128 is for them, −127 for the smallest of the others, and the step is
    negative, which tells such rows.
    """
    import torch

    from storage.encodings.never import never

    logits_BC, never_BC = logits_BC.float(), never(logits_BC.float())
    highest_B1 = logits_BC.amax(dim=1, keepdim=True)
    possible_BC = logits_BC if never_BC is None else torch.where(never_BC, highest_B1, logits_BC)
    lowest_B1 = possible_BC.amin(dim=1, keepdim=True)
    some_never_B1 = torch.zeros_like(lowest_B1) if never_BC is None else never_BC.any(dim=1, keepdim=True).float()
    # at least something, to be divided by: a row of one value has no step
    step_B1 = ((highest_B1 - lowest_B1) / (255 - some_never_B1)).clamp(min=torch.finfo(torch.float32).tiny)
    codes_BC = ((possible_BC - lowest_B1) / step_B1).round() - (128 - some_never_B1)
    if never_BC is not None:
        codes_BC.masked_fill_(never_BC, -128)
        step_B1 = torch.where(some_never_B1 > 0, -step_B1, step_B1)
    return {LOGITS: codes_BC.clamp(-128, 127).to(torch.int8), SCALE: torch.cat([step_B1, lowest_B1], 1)}


def _rounded(logits_BC: Tensor, dtype: Precision) -> Tensor:
    """Return logits as they are stored; what has no room is −∞ where it is a class that can never be, else +∞."""
    import torch

    from storage.encodings.never import never

    limit = torch.finfo({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]).max
    low_BC = (logits_BC < -limit) & (logits_BC > -torch.inf)
    if low_BC.any() and (never_BC := never(logits_BC)) is not None:
        logits_BC = logits_BC.masked_fill(low_BC & never_BC, -torch.inf)
        low_BC &= ~never_BC
    return _stored(logits_BC.masked_fill(low_BC, torch.inf), dtype)


def _stored(values: Tensor, dtype: Precision) -> Tensor:
    import torch

    if dtype == "bf16":
        return values.to(torch.bfloat16).view(torch.uint16)
    return values.to({"fp32": torch.float32, "fp16": torch.float16}[dtype])


def _to_float32(stored: Tensor, dtype: Precision) -> Tensor:
    import torch

    return stored.view(torch.bfloat16).float() if dtype == "bf16" else stored.float()
