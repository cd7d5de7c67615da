"""What a teacher is asked, and what is stored of one batch of it: encoded, told for the table, checked.

Shapes: B rows, `sites` the axes of a row's sites (storage.tasks), P sites of all these rows that are answered, C
classes, V ≥ C logits of a padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from storage.encodings.dense import LOGITS
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.tasks import NO_LABEL, task_of
from teacher_cache.teachers.model import Heard
from teacher_cache.work.checks import check_classes, finite_rows, refuse_probabilities

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from teacher_cache.teachers.model import Teacher

SAID = ("top_probability", "entropy", "label_log_probability")  # numbers of a commit's table


class Question(NamedTuple):
    """What a teacher is asked: rows (B, …), labels (B, *sites) int64, −1: none, and keys of draws, likewise."""

    shown: Tensor
    labels: Tensor
    keys: Tensor

    def of(self, rows_B: Tensor) -> Question:
        """Return the question about some of the rows, by their numbers, which lie on the host."""
        return Question(*(_picked(values, rows_B) for values in self))


class ShardAnswers(NamedTuple):
    """What a teacher said of a shard, all on the host: of its B readable rows, and of their P answered sites.

    What is of sites is flat: first those of row 0, in order of its sites, then those of row 1, …; which they are, and
    how many a row has, `Task.answered_sites` says of the shard's labels. A row may have none. How they are laid down
    on disk, is the matter of who asked.

    Attributes:
        columns: of the commit's table, (B,) each.
        answered: fields of `storage.tasks.base.Answered`, (B,) each: sums over a row's labelled sites; and `never`, how
            many of its answered sites have a class that can never be. Of features alone `labelled` only.
        encoded: name of an array in the cache → stored form, (P, …).
        finite: name → (P,) bool, of the teacher's own values.
        in_range: name → (P,) bool, of the stored form.
    """

    columns: dict[str, Tensor]
    answered: dict[str, Tensor]
    encoded: dict[str, Tensor]
    finite: dict[str, Tensor]
    in_range: dict[str, Tensor]

    @property
    def of_sites(self) -> tuple[dict[str, Tensor], ...]:
        return self.encoded, self.finite, self.in_range

    @property
    def of_rows(self) -> tuple[dict[str, Tensor], ...]:
        return self.columns, self.answered


class Batch(NamedTuple):
    """What was heard of a batch, or of several.

    Attributes:
        answered: of which sites the teacher was heard, bool (B, *sites).
        labels: as the question has them, and keys likewise.
        first: whether it is, or begins with, the first batch of a shard.
    """

    teacher: Teacher
    heard: Heard
    answered: Tensor
    labels: Tensor
    keys: Tensor
    spec: TeacherSpec
    dataset: DatasetSpec
    first: bool

    @property
    def size(self) -> int:
        """How many numbers were heard."""
        return sum(values.numel() for values in self._heard)

    @property
    def _heard(self) -> list[Tensor]:
        return [self.heard.hidden, *self.heard.features.values()]

    @property
    def _asked(self) -> bool:
        """Whether any site is answered; of a batch without any, one was heard for its shapes."""
        return bool(task_of(self.dataset).answered_sites(self.labels).any())

    def joins(self, other: Batch) -> bool:
        """Whether this batch and another can be encoded as one: each row is answered once, in the same shapes.

        Not of several sites a row: a head that has yet to make their logits would make them of other sites at a time.
        """
        alike = [values.shape[1:] for values in self._heard] == [values.shape[1:] for values in other._heard]
        return alike and self.answered.ndim == 1 and self._asked and other._asked

    @staticmethod
    def joined(batches: Sequence[Batch]) -> Batch:
        """Return several batches as one, in their order."""
        import torch

        if len(batches) == 1:
            return batches[0]
        features = {
            name: torch.cat([batch.heard.features[name] for batch in batches]) for name in batches[0].heard.features
        }
        hidden = torch.cat([batch.heard.hidden for batch in batches])
        answered, labels, keys = (
            torch.cat(each) for each in zip(*((b.answered, b.labels, b.keys) for b in batches), strict=True)
        )
        return batches[0]._replace(heard=Heard(hidden, features), answered=answered, labels=labels, keys=keys)

    def answers(self) -> ShardAnswers:
        """Return the answers as they are stored, on the device. Raises BadTeacher: they are no answers."""
        import torch

        spec, task = self.spec, task_of(self.dataset)
        device = self.heard.hidden.device
        if not spec.encoding.soft:
            return self._features_alone(_on(self.labels, device))
        labels_P, keys_P = self.labels[self.answered], self.keys[self.answered]
        blocks = [
            self._block(at, _on(labels_P[at], device), _on(keys_P[at], device))
            for at in self.teacher.blocks(len(labels_P), spec.num_classes)
        ]
        encoded, said, finite, in_range = (
            {name: torch.cat([block[number][name] for block in blocks]) for name in blocks[0][number]}
            for number in range(4)
        )
        for whole, more in zip((encoded, finite, in_range), self._features(), strict=True):
            whole.update(more)
        labels = _on(self.labels, device)
        sites = {name: self._spread(values) for name, values in said.items()}
        never = sites.pop("never").reshape(len(labels), -1).sum(1)
        answered = _answered(sites, labels) | {"never": never}
        if not self._asked:  # one was asked about, for its shapes
            answered["never"] = torch.zeros_like(never)
            encoded, finite, in_range = (
                {name: values[:0] for name, values in each.items()} for each in (encoded, finite, in_range)
            )
        return ShardAnswers(task.row_columns(sites, labels), answered, encoded, finite, in_range)

    def _features(self) -> tuple[dict[str, Tensor], ...]:
        """Return features as they are stored, and both checks of them."""
        encoded: dict[str, Tensor] = {}
        finite: dict[str, Tensor] = {}
        in_range: dict[str, Tensor] = {}
        for name, values in self.heard.features.items():
            path, encoding = f"feature/{name}", self.spec.features[name]
            encoded[path] = encoding.encode(values)
            finite[path] = finite_rows(values)
            in_range[path] = finite_rows(encoded[path], bf16=encoding.dtype == "bf16")
        return encoded, finite, in_range

    def _features_alone(self, labels: Tensor) -> ShardAnswers:
        """Return answers without any word on classes: of the table's columns only how many labels there are."""
        import torch

        task, (encoded, finite, in_range) = task_of(self.dataset), self._features()
        if not self._asked:  # one was asked about, for its shapes
            encoded, finite, in_range = (
                {name: values[:0] for name, values in each.items()} for each in (encoded, finite, in_range)
            )
        sites = {
            "top": labels.new_full(labels.shape, NO_LABEL),
            **{name: labels.new_full(labels.shape, torch.nan, dtype=torch.float32) for name in SAID},
        }
        labelled = (labels > NO_LABEL).reshape(len(labels), -1).sum(1)
        columns = task.row_columns(sites, labels)
        return ShardAnswers(columns, {"labelled": labelled}, encoded, finite, in_range)

    def _block(self, at: slice, labels_P: Tensor, keys_P: Tensor) -> tuple[dict[str, Tensor], ...]:
        """Return of some sites what is stored, what the table and the checks need of them, and both checks."""
        spec = self.spec
        logits_PV = self.teacher.scores(self.heard.hidden[at], self.dataset, again=spec.encoding.classes)
        check_classes(logits_PV, labels_P, spec, self.dataset)
        if self.first and at.start == 0 and spec.encoding.classes:
            refuse_probabilities(logits_PV, spec)
        encoded, told = spec.encoding.encode_and_tell(
            logits_PV, num_classes=spec.num_classes, labels_B=labels_P, keys_B=keys_P
        )
        in_range = {
            name: finite_rows(v, bf16=name in spec.encoding.bf16_arrays, but_never=name == LOGITS)
            for name, v in encoded.items()
        }
        said = told._asdict()
        return encoded, said, {spec.encoding.array: said.pop("right")}, in_range

    def _spread(self, values_P: Tensor) -> Tensor:
        """Return what was said of answered sites at their places among all of the batch, (B, *sites), 0 elsewhere."""
        if self.answered.all():
            return values_P.view(self.answered.shape)
        places_P = _on(self.answered.view(-1).nonzero()[:, 0], values_P.device)
        return values_P.new_zeros(self.answered.numel()).index_copy_(0, places_P, values_P).view(self.answered.shape)


def _on(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, without a wait for it."""
    return values if device.type == "cpu" else sent_to(values, str(device))


def _answered(sites: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Return sums over the labelled sites of each row, (B,): how many, how many right, nats of cross-entropy."""
    known = labels >= 0
    nats = -sites["label_log_probability"].double().masked_fill(~known, 0.0)
    counts = {"labelled": known, "correct": known & (sites["top"] == labels), "nats": nats}
    return {name: values.reshape(len(labels), -1).sum(1) for name, values in counts.items()}


def sent_to(values: Tensor, device: str) -> Tensor:
    """Return a tensor of the host on a GPU, once the current stream is there."""
    return values.pin_memory().to(device, non_blocking=True)


def _picked(values: Tensor, rows_B: Tensor) -> Tensor:
    """Return some rows, without a wait of the host for a GPU: a tensor of their own, but of pixels on a CPU.

    A model is given floats of those, so that nothing it does is done to them.
    """
    import torch

    on_cpu = values.device.type == "cpu"
    if (rows_B.diff() == 1).all():
        rows = values[int(rows_B[0]) : int(rows_B[-1]) + 1]
        return rows if on_cpu and values.dtype == torch.uint8 else rows.clone()
    return values[rows_B if on_cpu else sent_to(rows_B, str(values.device))]
