"""Vectors, decoded: what a teacher answered whose answers are no classes. B rows, D numbers of a vector."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class VectorTargets:
    """A vector of each row, (B, D) float32."""

    vectors_BD: Tensor
