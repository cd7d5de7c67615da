"""What losses need, what a batch holds, and what losses see of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from torch import Tensor

from storage.encodings import Capability, Encoded
from storage.errors import BadRequest
from storage.inputs.arguments import plain
from storage.targets.soft import SoftTargets
from storage.views import PLAIN
from student_train.options.by_dataset import teacher_of, teachers_named


class ArrayKey(NamedTuple):
    """One array of a teacher in the cache, such as `logits` or `feature/<name>`; needs name no view but `plain`.

    The teacher is named as a term names it (`options/by_dataset.py`).
    """

    teacher: str
    array: str
    view: str = PLAIN

    def __str__(self) -> str:
        return f"{self.teacher}/{self.array}"


Name = ArrayKey | str  # an array of a teacher, or inputs or labels (`shard_source.py`)
Arrays = dict[Name, Tensor]  # of some rows


class SoftNeed(NamedTuple):
    """One thing that a loss wants of a teacher's soft targets."""

    teacher: str
    capability: Capability


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be had of the cache for each row, inputs apart.

    Attributes:
        labels: whether every row must have one.
        some_labels: whether labels are wanted of the rows that have one.
        one_class: names of losses that want one true class, which a mixed view has not.
        soft: of soft targets; the teacher's encoding says which arrays that takes.
        features: arrays of features.
    """

    labels: bool = False
    one_class: frozenset[str] = frozenset()
    soft: frozenset[SoftNeed] = frozenset()
    features: frozenset[ArrayKey] = frozenset()
    some_labels: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.labels or other.labels,
            self.one_class | other.one_class,
            self.soft | other.soft,
            self.features | other.features,
            self.some_labels or other.some_labels,
        )

    @property
    def with_labels(self) -> bool:
        """Whether a batch has labels."""
        return self.labels or self.some_labels

    @property
    def teachers(self) -> tuple[str, ...]:
        """Return the names of the teachers, sorted."""
        return tuple(sorted({need.teacher for need in self.soft} | {key.teacher for key in self.features}))

    def teachers_of(self, datasets: Sequence[str]) -> list[tuple[str, str]]:
        """Return each of some datasets with each teacher that is needed of it. Raises BadRequest, as `within`."""
        return [(dataset, teacher) for dataset in datasets for teacher in self.within(dataset).teachers]

    def within(self, dataset: str) -> Needs:
        """Return what must be had of one dataset's rows, each teacher by its own name there.

        Raises:
            BadRequest: a teacher is named for other datasets only.
        """
        own = {name: _own_name(name, dataset) for name in self.teachers}
        return replace(
            self,
            soft=frozenset(need._replace(teacher=own[need.teacher]) for need in self.soft),
            features=frozenset(key._replace(teacher=own[key.teacher]) for key in self.features),
        )

    def of(self, teacher: str) -> frozenset[Capability]:
        """Return what is wanted of one teacher's soft targets."""
        return frozenset(need.capability for need in self.soft if need.teacher == teacher)


def _own_name(name: str, dataset: str) -> str:
    if (own := teacher_of(name, dataset)) is None:
        raise BadRequest(
            f"{name} names no teacher of {dataset}",
            found=", ".join(teachers_named(name)),
            expected=f"a teacher for each dataset whose rows are wanted, {dataset} among them",
            do="name one for each, or one name alone, of a teacher that all of them have",
        )
    return own


class MixedLabels(NamedTuple):
    """The second label of rows that mixup or CutMix made of two.

    Attributes:
        partner_labels_B: int64.
        own_weight_B: float32 in [0, 1], of a row's own label; the rest is its partner's.
    """

    partner_labels_B: Tensor
    own_weight_B: Tensor


@dataclass(frozen=True, slots=True)
class Supervision:
    """What the losses see of the sites of a batch, apart from the student's outputs; they know no task.

    B sites: the rows, where each is its only one, or a part of the labelled sites of all rows.

    Attributes:
        labels_B: int64, of numbers float32 (B, T), or None where no loss needs them.
        targets: decoded soft targets by teacher.
        features: float32, (B, …) each.
        mixed: of rows that are mixed of two, the other's label; None where no row is, or no loss needs labels.
    """

    labels_B: Tensor | None = None
    targets: dict[str, SoftTargets] = field(default_factory=dict)
    features: dict[ArrayKey, Tensor] = field(default_factory=dict)
    mixed: MixedLabels | None = None


@dataclass(frozen=True)
class Batch:
    """Rows on the device, as they are stored; decoded when the first student asks, once for all of them.

    N sites of all rows have a label, where rows have many sites.

    Attributes:
        shown: (B, *input_shape): inputs as a view shows them, pixels in uint8.
        labels_B: int64, of numbers float32 (B, T), or None where no loss needs them; where they are an array, always,
            (B, *sites), −1 for none.
        targets: encoded soft targets by teacher, (B, …) each; where rows have many sites, (N, …), of those with a label
            in the order of the rows.
        features: float32, likewise.
        mixed: as in Supervision.
    """

    shown: Tensor
    labels_B: Tensor | None = None
    targets: dict[str, Encoded] = field(default_factory=dict)
    features: dict[ArrayKey, Tensor] = field(default_factory=dict)
    mixed: MixedLabels | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch of what a function makes of each tensor."""
        targets = {
            teacher: replace(encoded, arrays={name: function(values) for name, values in encoded.arrays.items()})
            for teacher, encoded in self.targets.items()
        }
        return Batch(
            function(self.shown),
            None if self.labels_B is None else function(self.labels_B),
            targets,
            {key: function(values) for key, values in self.features.items()},
            None if self.mixed is None else MixedLabels(*map(function, self.mixed)),
        )

    def in_parts(self, rows: int) -> list[Batch]:
        """Return all of its rows in batches of so many, the last perhaps of fewer."""
        return [self.rows(slice(start, start + rows)) for start in range(0, len(self.shown), rows)]

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, in no order: arrays of two views may come in two."""
        found = {"shown": self.shown}
        if self.labels_B is not None:
            found["labels"] = self.labels_B
        for teacher, encoded in self.targets.items():
            found |= {f"target {teacher}/{name}": values for name, values in encoded.arrays.items()}
        found |= {f"feature {key}": values for key, values in self.features.items()}
        return found | ({} if self.mixed is None else {f"mixed {k}": v for k, v in self.mixed._asdict().items()})

    @cached_property
    def inputs(self) -> Tensor:
        """What students are given, (B, *input_shape): the very tensor that the teacher saw."""
        return plain(self.shown)

    def supervision(self) -> Supervision:
        """Return what the losses see, soft targets decoded; the same object every time, so never to be changed."""
        return self._supervision

    @cached_property
    def _supervision(self) -> Supervision:
        decoded = {teacher: encoded.decode() for teacher, encoded in self.targets.items()}
        return Supervision(self.labels_B, decoded, self.features, self.mixed)

    def sites(self) -> Tensor:
        """Return the sites of rows that count, for they have labels, (N,) int64, numbered through all of (B, L)."""
        return self._sites

    @cached_property
    def _sites(self) -> Tensor:
        assert self.labels_B is not None
        return labelled_sites(self.labels_B)

    def supervision_at(self, part: slice) -> Supervision:
        """Return what the losses see of a part of the N sites that count: each is a row to them."""
        assert self.labels_B is not None
        return Supervision(
            self.labels_B.flatten().index_select(0, self.sites()[part]),
            {teacher: encoded.part(part).decode() for teacher, encoded in self.targets.items()},
            {key: values[part] for key, values in self.features.items()},
        )

    def rows(self, chosen: slice) -> Batch:
        """Return some of its rows; where each is its only site, in the same memory."""
        of_rows = itemgetter(chosen)
        if (
            self.labels_B is None or self.labels_B.ndim == 1 or self.labels_B.is_floating_point()
        ):  # a row is its own site
            return self.each(of_rows)
        # the place of each site that counts among all N of them
        counted_BL = self.labels_B >= 0
        places_BL = counted_BL.flatten().cumsum(0).view_as(counted_BL) - 1
        places = places_BL[chosen][counted_BL[chosen]]
        whole = replace(self, targets={}, features={}).each(of_rows)
        return replace(
            whole,
            targets={teacher: encoded.pick(places) for teacher, encoded in self.targets.items()},
            features={key: values.index_select(0, places) for key, values in self.features.items()},
        )


def labelled_sites(labels_BL: Tensor) -> Tensor:
    """Return which sites have a label, (N,) int64, numbered through all of (B, L), row after row."""
    return (labels_BL.flatten() >= 0).nonzero()[:, 0]
