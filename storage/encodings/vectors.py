"""Vectors, the answers of an embedding or of a regression, whole. B rows, D numbers of a vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from storage.encodings.base import Capability, Encoding, Told

if TYPE_CHECKING:
    from torch import Tensor

    from storage.targets.vectors import VectorTargets

VECTORS, SCALE = "vectors", "scale"
VECTOR_TARGETS = "vector_targets"  # in `uses`: `vectors` in place of logits, `dimension` in place of `num_classes`
LARGEST_CODE = 127


class VectorEncoding(Encoding):
    """A vector of each site; there are no classes, so it serves the losses on vectors alone.

    `int8` keeps 255 even steps between minus and plus the row's largest absolute number, whose step is in float32.

    >>> VectorEncoding(dtype="fp16").bytes_per_row(384), VectorEncoding(dtype="int8").bytes_per_row(384)
    (768, 388)
    """

    classes: ClassVar[bool] = False
    array: ClassVar[str] = VECTORS

    kind: Literal["vectors"] = "vectors"
    dtype: Literal["fp32", "fp16", "int8"] = "fp32"
    statistics: bool = False

    @model_validator(mode="after")
    def _no_softmax(self) -> Self:
        if self.statistics or self.temperatures != [1.0] or self.standardised_temperatures:
            raise ValueError('kind = "vectors" has no softmax: leave out temperatures and statistics')
        return self

    @property
    def serves(self) -> tuple[str, ...]:
        return ("vectors, which have no classes",)

    def lacks(self, need: Capability) -> str | None:
        return None if need.name == "vectors" else 'a dataset with classes, and encoding = { kind = "dense" }'

    def stored(self, num_classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        dtype = {"fp32": "float32", "fp16": "float16", "int8": "int8"}[self.dtype]
        scale: dict[str, tuple[str, tuple[int, ...]]] = {SCALE: ("float32", (1,))} if self.dtype == "int8" else {}
        return {VECTORS: (dtype, (num_classes,)), **scale}

    def array_names(self, needs: Iterable[Capability]) -> tuple[str, ...]:
        return (VECTORS, SCALE) if self.dtype == "int8" else (VECTORS,)

    def bytes_per_row(self, num_classes: int) -> int:
        return {"fp32": 4 * num_classes, "fp16": 2 * num_classes, "int8": num_classes + 4}[self.dtype]

    def encode_and_tell(
        self, logits_BC: Tensor, *, num_classes: int, labels_B: Tensor, keys_B: Tensor
    ) -> tuple[dict[str, Tensor], Told]:
        """Return VECTORS (B, D) as `dtype`, for int8 SCALE (B, 1) too; of classes there is nothing to tell."""
        import torch

        vectors_BD = logits_BC.float()
        nothing_B = torch.full_like(vectors_BD[:, 0], torch.nan)
        top_B = torch.full_like(labels_B, -1, device=vectors_BD.device)  # no class
        right_B = vectors_BD.isfinite().all(dim=1)
        told = Told(top_B, nothing_B, nothing_B, nothing_B, torch.zeros_like(right_B), right_B)
        if self.dtype != "int8":
            return {VECTORS: vectors_BD.to(torch.float32 if self.dtype == "fp32" else torch.float16)}, told
        # at least something, to be divided by: a vector may be 0
        step_B1 = (vectors_BD.abs().amax(dim=1, keepdim=True) / LARGEST_CODE).clamp(min=torch.finfo(torch.float32).tiny)
        codes_BD = (vectors_BD / step_B1).round().clamp(-LARGEST_CODE, LARGEST_CODE)
        return {VECTORS: codes_BD.to(torch.int8), SCALE: step_B1}, told

    # Who asks for classes is refused before (`lacks`): a loss on vectors knows what it gets.
    def decode(self, arrays: dict[str, Tensor], num_classes: int) -> VectorTargets:  # type: ignore[override]
        from storage.targets.vectors import VectorTargets

        vectors_BD = arrays[VECTORS].float()
        return VectorTargets(vectors_BD * arrays[SCALE] if self.dtype == "int8" else vectors_BD)
