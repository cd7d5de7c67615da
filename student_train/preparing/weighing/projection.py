"""The peak memory of a job, bounded before anything is read or trained.

What a job holds: the libraries; the rows, all of them or two shuffle windows; some shards on their way in; the students
of a pass with their gradients, optimiser states and averages; activations, of one batch and one student where they step
one by one, of all students of a stack where they are stacked; and a checkpoint on its way out. A streamed job's bound
does not depend on the size of the cache, but for 32 bytes a row of labels and order.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import compress
from operator import add, or_
from pathlib import Path

import torch

from storage.errors import BadRequest, gib
from storage.views.shown import BLOCK_BYTES
from student_train.feed.devices import free_bytes
from student_train.feed.order import largest_batch
from student_train.feed.residency import Residency, choose_residency, projected_bytes
from student_train.feed.selection import Selection
from student_train.options.sections import FleetOptions
from student_train.preparing.prepare import passes
from student_train.preparing.request import PreparedRun, Request
from student_train.preparing.weighing.feed_memory import FedRows, feed_bytes
from student_train.preparing.weighing.step_memory import StepBytes, measure_step
from student_train.stepping.recorder import is_recorded
from student_train.stepping.stack.stack import stack_key

INDEX_BYTES_PER_ROW = 32  # a row's label, top class, place in its shard, and key
VIEW_COPIES = 6  # of a batch's pixels: own and partners', stored, transformed and mixed
VIEW_WORK = 16  # bytes in between for each pixel that is being transformed
WORKSPACES = 2 * 32 * 2**20  # of cuBLAS on the larger GPUs, one for each stream that computes: of steps, of recordings
STACK_WORK = 2  # of a stack's weights: the gradients as they come, and the optimiser's update
LIBRARIES = "libraries"


@dataclass(frozen=True, slots=True)
class MemoryProjection:
    """The bound for a whole job: that of the pass which takes most.

    Attributes:
        residency: where rows are, with its reason.
        host_bytes: of the process, libraries included.
        device_bytes: of a GPU, or None where students are trained on the host.
        parts: what the two are made of, by name.
    """

    residency: Residency
    host_bytes: int
    device_bytes: int | None
    parts: dict[str, int]

    @property
    def to_come_bytes(self) -> int:
        """Return what is still to be allocated where the students are."""
        return self.host_bytes - self.parts[LIBRARIES] if self.device_bytes is None else self.device_bytes


@dataclass(frozen=True, slots=True)
class CohortBytes:
    """What the students of a pass take, sums over those that hold something at the same time."""

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    recordings: int
    checkpoint: int

    @property
    def total(self) -> int:
        """Return what is held at the same time."""
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations + self.recordings

    @classmethod
    def of(
        cls, students: Sequence[PreparedRun], steps: Sequence[StepBytes], *, stacked: bool, recorded: Sequence[bool]
    ) -> CohortBytes:
        """Return the bytes of students, stacked wherever they might be, or one by one.

        One by one, a student's gradients and activations are gone before the next one's step. A stack has those of
        all its students, and its trial has a copy of all weights. Steps that are recorded have gradients and
        activations once more, in memory of their own that they share, and a batch each.
        """
        together: dict[Hashable, list[int]] = {}
        for place, student in enumerate(students):
            together.setdefault(stack_key(student.options, student.blueprint) if stacked else place, []).append(place)
        each = [[steps[place] for place in places] for places in together.values()]
        extra = [sum(step.weights for step in stack) if len(stack) > 1 else 0 for stack in each]
        gradients = [
            sum(step.gradients for step in stack) + STACK_WORK * more for stack, more in zip(each, extra, strict=True)
        ]
        activations = [sum(step.activations for step in stack) for stack in each]
        replayed = [recorded[places[0]] for places in together.values()]
        return cls(
            weights=sum(step.weights for step in steps) + max(extra),
            gradients=max(gradients),
            optimizer=sum(step.optimizer for step in steps),
            copies=sum(step.copies for step in steps),
            activations=max(activations),
            recordings=max(map(add, compress(gradients, replayed), compress(activations, replayed)), default=0)
            + sum(step.batch for step in compress(steps, recorded)),
            checkpoint=max(step.checkpoint for step in steps),
        )


def choose_for(request: Request, students: Sequence[PreparedRun], device: torch.device) -> Residency:
    """Return where the rows of all students are to be kept."""
    wanted = [pair for s in students for pair in ((s.train, s.needs), (s.held, s.held_needs))]
    return choose_residency(request.data.residency, projected_bytes(wanted), device)


def project_memory(
    students: Sequence[PreparedRun],
    residency: Residency,
    window_shards: int,
    device: torch.device,
    fleet: FleetOptions,
) -> MemoryProjection:
    """Return the projected peak of training these students.

    Args:
        students: checked ones.
        residency: as chosen for them.
        window_shards: of the shuffle.
        device: where they are to be trained.
        fleet: how they are trained together; "auto" counts as stacked.
    """
    steps = dict(zip((student.name for student in students), _measured(students), strict=True))
    heaviest = max(
        (
            CohortBytes.of(
                cohort,
                [steps[s.name] for s in cohort],
                stacked=fleet.stacking != "never",
                recorded=[
                    is_recorded(fleet.cuda_graphs, s.blueprint, device, recompute=s.options.recompute) for s in cohort
                ],
            )
            for cohort in passes(students, fleet.at_once)
        ),
        key=lambda cohort: cohort.total,
    )
    fed = _fed(students, window_shards)
    within = any(s.options.evaluate_every_steps or s.total_steps % s.steps_an_epoch for s in students)
    feeds = feed_bytes(fed, residency, device, held_within=len(students) if within else None)
    # by id: students share selections
    widest = {id(selection): selection.num_rows for s in students for selection in (s.train, s.held)}
    on_device = feeds.device | {
        "weights": heaviest.weights,
        "gradients": heaviest.gradients,
        "optimiser": heaviest.optimizer,
        "averaged and best weights": heaviest.copies,
        "activations": heaviest.activations,
    }
    if device.type == "cuda":
        on_device |= {"recorded steps": heaviest.recordings, "workspaces": WORKSPACES}
    indices = {"labels and order": INDEX_BYTES_PER_ROW * sum(widest.values())}
    on_host = {LIBRARIES: resident_set_bytes()} | indices | feeds.host
    if any(student.train.views is not None for student in students):
        on_device["a batch's view"] = max(_view_bytes(student, device) for student in students)
    on_host["a checkpoint being written"] = heaviest.checkpoint
    if device.type == "cpu":
        parts = on_host | on_device
        return MemoryProjection(residency, sum(parts.values()), None, parts)
    return MemoryProjection(residency, sum(on_host.values()), sum(on_device.values()), on_host | on_device)


def fit(
    students: Sequence[PreparedRun],
    residency: Residency,
    window_shards: int,
    device: torch.device,
    fleet: FleetOptions,
) -> tuple[FleetOptions, MemoryProjection]:
    """Return how students are trained together within the device's memory, and the bound.

    What might not fit and the job does not ask for is given up: first recorded steps, then stacks.

    Raises:
        BadRequest: they do not fit even so; the message has the number that does.
    """
    free = free_bytes(device)

    def projected(options: FleetOptions) -> MemoryProjection:
        return project_memory(students, residency, window_shards, device, options)

    found = projected(fleet)
    for optional in ("cuda_graphs", "stacking"):
        if found.to_come_bytes > free and getattr(fleet, optional) == "auto":
            without = fleet.model_copy(update={optional: "never"})
            less = projected(without)
            if less.to_come_bytes < found.to_come_bytes:  # else nothing is gained by giving it up
                fleet, found = without, less
    if found.to_come_bytes <= free:
        return fleet, found
    few, many = 0, fleet.at_once or len(students)  # `few` students fit, `many` do not
    while many - few > 1:
        middle = (few + many) // 2
        fits = projected(fleet.model_copy(update={"at_once": middle})).to_come_bytes <= free
        few, many = (middle, many) if fits else (few, middle)
    raise BadRequest(
        f"{len(students)} students do not fit on {device}"
        if len(students) > 1
        else f"the student does not fit on {device}",
        found=f"{gib(found.to_come_bytes)} projected, {gib(free)} free",
        expected=f"{few} students at once, or fewer" if few else None,
        do=(f"at_once = {few}" if few else 'a smaller micro_batch_size, a smaller student, or residency = "stream"')
        + ('; or cuda_graphs = "auto"' if fleet.cuda_graphs == "always" else ""),
    )


def resident_set_bytes() -> int:
    """Return the memory that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return 400 * 2**20
    return pages * 4096  # of 4 KiB


def _measured(students: Sequence[PreparedRun]) -> list[StepBytes]:
    """Return what each student's step holds; those that are alike are measured once."""
    kinds: dict[str, StepBytes] = {}
    for student in students:
        kind = _kind(student)
        if kind not in kinds:
            kinds[kind] = measure_step(student)
    return [kinds[_kind(student)] for student in students]


def _kind(student: PreparedRun) -> str:
    """Return what a step's memory depends on."""
    options = student.options
    # SGD without momentum keeps no state
    extras = (
        options.batch_size,
        options.micro_batch_size,
        options.adapter,
        options.optimizer,
        options.momentum > 0,
        options.ema_decay is None,
    )
    return repr((student.blueprint, options.losses, *extras, options.keeps_best, options.recompute, options.autocast))


def _view_bytes(student: PreparedRun, device: torch.device) -> int:
    """Return what it takes to show a batch of uint8 pixels in a view."""
    rows = largest_batch(student.train.num_rows, student.options.batch_size)
    pixels = rows * math.prod(student.blueprint.input_shape)
    # own and partners', a block at a time
    return VIEW_COPIES * pixels + VIEW_WORK * min(2 * pixels, BLOCK_BYTES[device.type])


def _fed(students: Sequence[PreparedRun], window_shards: int) -> list[FedRows]:
    """Return what one pass feeds all students, which each of them trains and is measured on."""
    needs = reduce(or_, (student.needs for student in students))
    views = len({student.options.first_view for student in students})

    def rows_of(selection: Selection, batch_size: int) -> int:
        return largest_batch(selection.num_rows, batch_size)

    train = [FedRows(s.train, needs, window_shards, rows_of(s.train, s.options.batch_size), views) for s in students]
    held_needs = reduce(or_, (student.held_needs for student in students))
    return train + [FedRows(s.held, held_needs, 1, rows_of(s.held, s.options.rows_at_once)) for s in students]
