"""The peak memory of a run, bounded from its job before anything is read or trained.

What a run holds: the libraries; the rows, all of them or two shuffle windows; one shard on its way in; the student
with its gradients, optimiser state and averages; the activations of one batch; and a checkpoint on its way out.
A streamed run's bound does not depend on the size of the cache, but for 32 bytes a row of labels and order.

Activations are measured on the meta device, which computes shapes and allocates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storage.cache import Cache
from storage.errors import BadRequest
from storage.views.shown import BLOCK_BYTES
from student_train.blank import blank_batch
from student_train.learner import make_optimizer
from student_train.needs import Batch, Needs, Outputs, Shapes
from student_train.objective import Objective, Tapped, check_student, student_layers
from student_train.positions import part_size
from student_train.prepare import Prepared
from student_train.residency import Residency, row_bytes
from student_train.selection import Selection
from student_train.students import Student, build_student

INDEX_BYTES_PER_ROW = 32  # a row's label, top class, place in its shard, and place in the order
VIEW_COPIES = 6  # of a batch's pixels: own and partners', stored, transformed and mixed
VIEW_WORK = 16  # bytes in between for each pixel that is being transformed
SHARD_COPIES = 3  # of a shard while it is read: stored bytes, decoded, and the rows that are picked
PICKED_COPIES = 3  # of a student of tokens' hidden states: those that count, and their gradient there and in all
WORKING_ACTIVATIONS = 2  # of the largest activation: its gradient, and the next one's
# glibc takes tensors below 32 MiB from its heap, where backward passes leave holes: 1.8 to 1.9 times the saved bytes
# for resnets of any batch size. Larger ones are mapped, and returned when freed.
HEAP_LIMIT_BYTES = 32 * 2**20
HEAP_HOLES = 1.9


@dataclass(frozen=True, slots=True)
class StepBytes:
    """What one student needs on its device.

    Attributes:
        weights: parameters and buffers, those of projections too.
        gradients: of all that is trained.
        optimizer: its state.
        copies: averaged and best weights.
        activations: of one batch, kept for the backward pass, and what that works with.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int

    @property
    def total(self) -> int:
        """Return the sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations

    @property
    def checkpoint(self) -> int:
        """Return the bytes of a checkpoint while it is written: each tensor's, and the file's."""
        return 2 * (self.weights + self.optimizer + self.copies)


@dataclass(frozen=True, slots=True)
class MemoryProjection:
    """The bound for a whole job, whose students are trained one after another.

    Attributes:
        residency: "resident" or "stream", with its reason.
        host_bytes: of the process, libraries included.
        device_bytes: of a GPU, or None where the student is trained on the host.
        parts: what the two are made of, by name.
    """

    residency: Residency
    host_bytes: int
    device_bytes: int | None
    parts: dict[str, int]


def project_memory(
    cache: Cache, students: Sequence[Prepared], residency: Residency, window_shards: int, device: torch.device
) -> MemoryProjection:
    """Return the projected peak of training these students one after another.

    Args:
        cache: where rows are.
        students: checked ones.
        residency: as chosen for them.
        window_shards: of the shuffle.
        device: where they are to be trained.
    """
    steps = [measure_step(student) for student in students]
    heaviest = max(steps, key=lambda step: step.total)
    feeds = [(s.train, s.needs, window_shards) for s in students] + [(s.held, Needs(), 1) for s in students]
    widest = {id(selection): selection.num_rows for selection, _, _ in feeds}
    shard = max(SHARD_COPIES * _window_bytes(cache, selection, needs, 1) for selection, needs, _ in feeds)
    windows = max(2 * _window_bytes(cache, selection, needs, size) for selection, needs, size in feeds)
    on_device = {
        "weights": heaviest.weights,
        "gradients": heaviest.gradients,
        "optimiser": heaviest.optimizer,
        "averaged and best weights": heaviest.copies,
        "activations of a batch": heaviest.activations,
    }
    on_host = {"libraries": resident_set_bytes(), "labels and order": INDEX_BYTES_PER_ROW * sum(widest.values())}
    if any(student.train.views is not None for student in students):
        on_device["a batch's view"] = max(_view_bytes(student, device) for student in students)
    if residency.resident:
        on_device["resident rows"] = residency.projected_bytes
        on_host["a shard being read"] = shard
    else:
        on_host["two windows of rows"] = windows
        on_host["a shard being read"] = shard
    on_host["a checkpoint being written"] = max(step.checkpoint for step in steps)
    if device.type == "cpu":
        parts = on_host | on_device
        return MemoryProjection(residency, sum(parts.values()), None, parts)
    return MemoryProjection(residency, sum(on_host.values()), sum(on_device.values()), on_host | on_device)


def measure_step(student: Prepared) -> StepBytes:
    """Return what a student's training step holds, from one step on the meta device.

    A user's architecture that cannot be built there takes its step on the CPU instead.
    """
    try:
        return _measure(student, torch.device("meta"))
    except (NotImplementedError, RuntimeError, BadRequest):  # it was built on the CPU once already
        return _measure(student, torch.device("cpu"))


def resident_set_bytes() -> int:
    """Return the memory that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return 400 * 2**20
    return pages * 4096


def _measure(prepared: Prepared, device: torch.device) -> StepBytes:
    options, spec = prepared.options, prepared.spec
    with device:
        student = build_student(spec)
        layers = student_layers(options.objective)
        shapes = Shapes(check_student(student, layers, spec.input_shape, spec.num_classes), prepared.feature_shapes)
        objective = Objective(options.objective, shapes)
        rows = min(options.batch_size, prepared.train.num_rows)
        batch = blank_batch(student, spec, prepared.encodings, prepared.feature_shapes, rows)
    student.train()
    trained = [*student.parameters(), *objective.parameters()]
    optimizer = make_optimizer(options, trained)
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[_address(tensor)] = tensor  # kept, so that no other storage takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = Tapped(student, layers)(batch.inputs)
        if spec.of_tokens:
            loss, beside = _one_part(student, objective, outputs, batch, spec.num_classes)
        else:
            loss, beside = objective(outputs, batch.supervision()).total, 0
    stored = [batch.inputs, *batch.features.values()]
    stored += [values for encoded in batch.targets.values() for values in encoded.arrays.values()]
    own = {_address(tensor) for tensor in (*trained, *student.buffers(), *stored)}
    activations = [tensor.untyped_storage().nbytes() for address, tensor in saved.items() if address not in own]
    loss.backward()
    optimizer.step()
    weights = _bytes_of([*student.state_dict().values(), *objective.state_dict().values()])
    copies = int(options.ema_decay is not None) + int(options.patience_epochs is not None)
    return StepBytes(
        weights=weights,
        gradients=_bytes_of(trained),
        optimizer=_bytes_of([value for state in optimizer.state.values() for value in state.values()]),
        copies=copies * _bytes_of(list(student.state_dict().values())),
        activations=_working_bytes(activations) + beside + _bytes_of(stored),
    )


def _working_bytes(activations: Sequence[int]) -> int:
    """Return what saved activations, and the backward pass over them, take of a host's memory."""
    held = sum(size if size > HEAP_LIMIT_BYTES else HEAP_HOLES * size for size in activations)
    return int(held) + WORKING_ACTIVATIONS * max(activations, default=0)


def _one_part(
    student: Student, objective: Objective, outputs: Outputs, batch: Batch, num_classes: int
) -> tuple[Tensor, int]:
    """Return the loss of a part of the positions, and the bytes of what the others keep beside (`positions.py`)."""
    whole = [outputs.logits_BC, *outputs.layers.values()]
    size = min(part_size(num_classes, student.device), batch.inputs.numel())
    positions_N = torch.arange(size, device=student.device)
    hidden, *layers = (values.flatten(0, 1).index_select(0, positions_N) for values in whole)
    seen = Outputs(student.scores(hidden), dict(zip(outputs.layers, layers, strict=True)))
    loss = objective(seen, batch.supervision_at(positions_N)).total
    return loss, PICKED_COPIES * _bytes_of(whole)


def _view_bytes(student: Prepared, device: torch.device) -> int:
    """Return what it takes to show a batch of uint8 pixels in a view."""
    pixels = min(student.options.batch_size, student.train.num_rows) * math.prod(student.spec.input_shape)
    return VIEW_COPIES * pixels + VIEW_WORK * min(2 * pixels, BLOCK_BYTES[device.type])


def _window_bytes(cache: Cache, selection: Selection, needs: Needs, window_shards: int) -> int:
    """Return the bytes of the largest window of so many shards, whatever the shuffle."""
    starts = cache.shards(selection.dataset)
    whole = {shard.shard: shard.stop - shard.start for shard in starts}
    sizes = selection.shard_sizes_S if window_shards > 1 else np.array([whole[shard] for shard in selection.shards_S])
    return int(np.sort(sizes)[-window_shards:].sum()) * row_bytes(cache, selection.dataset, needs)


def _address(tensor: Tensor) -> int:
    """Return what tells storages apart on the meta device too, where all data lie at 0."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001


def _bytes_of(tensors: Sequence[Any]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor))
