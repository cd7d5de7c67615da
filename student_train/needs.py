"""What losses need, what a batch holds, and what losses see of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from storage.encodings import Capability, Encoded
from storage.encodings.targets import SoftTargets


@dataclass(frozen=True, slots=True, order=True)
class ArrayKey:
    """One array of a teacher in the cache, such as `logits` or `feature/<name>`."""

    teacher: str
    array: str

    def __str__(self) -> str:
        return f"{self.teacher}/{self.array}"


class SoftNeed(NamedTuple):
    """One thing that a loss wants of a teacher's soft targets."""

    teacher: str
    capability: Capability


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be had of the cache for each row, inputs apart.

    Attributes:
        labels: whether every row must have one.
        one_class: names of losses that want one true class, which a mixed view has not.
        soft: of soft targets; the teacher's encoding says which arrays that takes.
        features: arrays of features.
    """

    labels: bool = False
    one_class: frozenset[str] = frozenset()
    soft: frozenset[SoftNeed] = frozenset()
    features: frozenset[ArrayKey] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.labels or other.labels,
            self.one_class | other.one_class,
            self.soft | other.soft,
            self.features | other.features,
        )

    @property
    def teachers(self) -> tuple[str, ...]:
        """Return the names of the teachers, sorted."""
        return tuple(sorted({need.teacher for need in self.soft} | {key.teacher for key in self.features}))

    def of(self, teacher: str) -> frozenset[Capability]:
        """Return what is wanted of one teacher's soft targets."""
        return frozenset(need.capability for need in self.soft if need.teacher == teacher)


@dataclass(frozen=True, slots=True)
class Supervision:
    """What the losses see of a batch, apart from the student's outputs.

    Attributes:
        labels_B: int64, or None where no loss needs them.
        targets: decoded soft targets by teacher.
        features: float32, (B, …) each.
    """

    labels_B: Tensor | None = None
    targets: dict[str, SoftTargets] = field(default_factory=dict)
    features: dict[ArrayKey, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows on the device, soft targets as they are stored.

    Attributes:
        inputs: (B, *input_shape): the very tensor that the teacher saw.
        labels_B: int64, or None where no loss needs them.
        targets: encoded soft targets by teacher.
        features: float32, (B, …) each.
    """

    inputs: Tensor
    labels_B: Tensor | None = None
    targets: dict[str, Encoded] = field(default_factory=dict)
    features: dict[ArrayKey, Tensor] = field(default_factory=dict)

    def supervision(self) -> Supervision:
        """Return what the losses see, soft targets decoded, each teacher's once."""
        decoded = {teacher: encoded.decode() for teacher, encoded in self.targets.items()}
        return Supervision(self.labels_B, decoded, self.features)


@dataclass(frozen=True, slots=True)
class Outputs:
    """A student's logits (B, C) and the layers that its objective asked for."""

    logits_BC: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shapes without B, known before the first step: of the student's layers and of teachers' features."""

    layers: dict[str, tuple[int, ...]]
    features: dict[ArrayKey, tuple[int, ...]]
