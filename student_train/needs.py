"""What a loss needs, and what a batch holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True, order=True)
class ArrayKey:
    """One array of soft targets: `logits`, or `feature/<name>`."""

    teacher: str
    array: str

    def __str__(self) -> str:
        return f"{self.teacher}/{self.array}"


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be read of the cache for each row, inputs apart."""

    labels: bool = False
    arrays: frozenset[ArrayKey] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.labels or other.labels, self.arrays | other.arrays)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Return the names of the teachers, sorted."""
        return tuple(sorted({key.teacher for key in self.arrays}))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows on the device.

    Attributes:
        inputs: float32, (B, *input_shape): the very tensor that the teacher saw.
        labels_B: int64, or None where no loss needs them.
        targets: decoded soft targets, float32, (B, C) for logits and (B, …) for a feature.
    """

    inputs: Tensor
    labels_B: Tensor | None = None
    targets: dict[ArrayKey, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outputs:
    """A student's logits (B, C) and the layers that its objective asked for."""

    logits_BC: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes without B, known before the first step."""

    layers: dict[str, tuple[int, ...]]
    targets: dict[ArrayKey, tuple[int, ...]]
