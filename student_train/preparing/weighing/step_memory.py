"""The memory of one student's training step, measured on the meta device, which computes shapes only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from storage.errors import BadRequest
from student_train.feed.batches import Batch
from student_train.losses.objective import Objective, student_layers
from student_train.losses.outputs import Outputs, Shapes
from student_train.preparing.request import PreparedRun
from student_train.preparing.weighing.blank import blank_batch
from student_train.stepping.forward import Tapped, check_student
from student_train.stepping.recompute import recomputed_blocks
from student_train.stepping.state import make_optimizer, trained_of
from student_train.students import Student, build_student
from student_train.students.parts import part_size
from student_train.students.starting.adapter import adapt
from student_train.students.tensors import own_tensors
from student_train.tasks import Way, task_of

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
        activations: of the rows that go through it at a time, kept for the backward pass, and what that works with.
        batch: what is stored of it, which is among the activations.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    batch: int

    @property
    def total(self) -> int:
        """Return the sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations

    @property
    def checkpoint(self) -> int:
        """Return the bytes of a checkpoint while it is written: each tensor's, and the file's."""
        return 2 * (self.weights + self.optimizer + self.copies)


def measure_step(student: PreparedRun) -> StepBytes:
    """Return what a student's training step holds, from one step on the meta device.

    A user's architecture that cannot be built there takes its step on the CPU instead.
    """
    try:
        return _measure(student, torch.device("meta"))
    except (NotImplementedError, RuntimeError, BadRequest):  # it was built on the CPU once already
        return _measure(student, torch.device("cpu"))


def _measure(prepared: PreparedRun, device: torch.device) -> StepBytes:
    """Return what a student's step holds, by taking it on a device: the meta device, or the CPU."""
    options, blueprint = prepared.options, prepared.blueprint
    layers = student_layers(options.objective)
    with device:
        student = build_student(blueprint)
        if options.adapter is not None:
            adapt(student, options.adapter)
        of_layers = check_student(student, layers, blueprint.input_shape, blueprint.num_classes)
        objective = Objective(options.objective, Shapes(of_layers, prepared.feature_shapes))
        batch = blank_batch(student, prepared)
        part = batch.rows(slice(options.micro_batch_size))  # what goes through the network at a time
    student.train()
    trained = trained_of(student, objective)
    optimizer = make_optimizer(options, trained, [student, objective])
    saved = _Saved(recomputed_blocks(student) if options.recompute else [])
    with saved.watched():
        outputs = Tapped(student, layers)(part.inputs)
        loss, beside = LOSS[task_of(blueprint).way](student, objective, outputs, part)
    stored = [batch.inputs, *batch.features.values()]
    stored += [values for encoded in batch.targets.values() for values in encoded.arrays.values()]
    # what is counted by itself is no activation
    activations = saved.sizes(but=[*trained, *student.parameters(), *student.buffers(), *stored])
    loss.backward()  # on to the end: only then has the optimiser its state
    optimizer.step()
    frozen = [p for p in student.parameters() if not p.requires_grad]
    weights = _bytes_of([*own_tensors(student).values(), *frozen, *objective.state_dict().values()])
    # the average, and the best so far
    copies = int(options.ema_decay is not None) + int(options.keeps_best)
    return StepBytes(
        weights=weights,
        gradients=_bytes_of(trained),
        optimizer=_bytes_of([value for state in optimizer.state.values() for value in state.values()]),
        copies=copies * _bytes_of(list(own_tensors(student).values())),
        activations=_working_bytes(activations) + beside + _bytes_of(stored),
        batch=_bytes_of(stored),
    )


class _Saved:
    """What a forward pass keeps for the backward one; of blocks that run again there, what one of them does.

    Args:
        blocks: that run again; each keeps only what it is given, until its own backward pass.
    """

    def __init__(self, blocks: Sequence[nn.Module]):
        self._blocks = blocks
        # by block, None for what is in none: tensors by their storage's address
        self._tensors: dict[nn.Module | None, dict[int, Tensor]] = {None: {}} | {block: {} for block in blocks}
        self._within: list[nn.Module | None] = [None]
        for block in blocks:
            block.register_forward_pre_hook(self._enter, with_kwargs=True)
            block.register_forward_hook(lambda *_: (self._within.pop(), None)[1])

    def watched(self) -> AbstractContextManager[Any]:
        """Return a context in which what autograd saves is seen."""
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def sizes(self, *, but: Sequence[Tensor]) -> list[int]:
        """Return the bytes of each tensor outside of blocks, and of those of the block that has most; `but` some."""
        own = {_address(tensor) for tensor in but}
        by_block = {
            block: [t.untyped_storage().nbytes() for address, t in tensors.items() if address not in own]
            for block, tensors in self._tensors.items()
        }
        return by_block[None] + max((by_block[block] for block in self._blocks), key=sum, default=[])

    def _keep(self, tensor: Tensor) -> Tensor:
        self._tensors[self._within[-1]][_address(tensor)] = tensor  # kept: no other storage takes its address
        return tensor

    def _enter(self, block: nn.Module, inputs: Any, named: Any) -> None:
        for tensor in tree_leaves((inputs, named)):
            if isinstance(tensor, Tensor):
                self._keep(tensor)  # what a block is given stays
        self._within.append(block)


def _working_bytes(activations: Sequence[int]) -> int:
    """Return what saved activations, and the backward pass over them, take of a host's memory."""
    held = sum(size if size > HEAP_LIMIT_BYTES else HEAP_HOLES * size for size in activations)
    return int(held) + WORKING_ACTIVATIONS * max(activations, default=0)


def _all_rows(student: Student, objective: Objective, outputs: Outputs, batch: Batch) -> tuple[Tensor, int]:
    return objective(outputs, batch.supervision()).total, 0


def _one_part(student: Student, objective: Objective, outputs: Outputs, batch: Batch) -> tuple[Tensor, int]:
    """Return the loss of a part of the sites, and the bytes of what the others keep beside (`gradients/sites.py`)."""
    whole = [outputs.logits_BC, *outputs.layers.values()]
    size = min(part_size(student.blueprint.num_classes, student.device), batch.inputs.numel())
    sites_N = torch.arange(size, device=student.device)
    hidden, *layers = (values.flatten(0, 1).index_select(0, sites_N) for values in whole)
    seen = Outputs(student.scores(hidden), dict(zip(outputs.layers, layers, strict=True)))
    loss = objective(seen, batch.supervision_at(slice(size))).total
    return loss, PICKED_COPIES * _bytes_of(whole)


# The loss of what a step computes at a time, and the bytes that it keeps beside.
LOSS: dict[Way, Callable[[Student, Objective, Outputs, Batch], tuple[Tensor, int]]] = {
    "rows": _all_rows,
    "sites": _one_part,
}


def _address(tensor: Tensor) -> int:
    """Return what tells storages apart on the meta device too, where all data lie at 0."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001


def _bytes_of(tensors: Sequence[Any]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor))
