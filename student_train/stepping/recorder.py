"""Steps as CUDA graphs: what a step tells a GPU to do is recorded once and replayed, without Python between kernels.

A small student's step is hundreds of kernels, each of which takes less time than to launch it: recorded, it takes half
the time or less, and ends at the same weights (docs/log.md). Steps on batches of one kind are recorded; others, such as
the last of an epoch, and those that measure each term's share, are taken as they are on a CPU.

A recording repeats what it saw: what a model decides in Python, by what it is given or at random, it would decide once
for the whole run. So a user's own model is recorded only where its job says so.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol
from weakref import WeakSet, WeakValueDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from storage.errors import BadRequest
from student_train.feed.batches import Batch
from student_train.options.sections import Choice
from student_train.stepping.gradients.rows import Step
from student_train.students import Blueprint
from student_train.tasks import StudentTask, task_of

WARM_STEPS = 2  # on batches of one kind, taken before one is recorded: they make what is made once

Kind = tuple[frozenset[tuple[str, torch.Size, torch.dtype]], ...]  # of a step: its batches' tensors


class Take(Protocol):
    """A step on one batch for each view: all that it changes lies on the device, in memory that stays."""

    def __call__(self, batches: Sequence[Batch], *, measure_shares: bool) -> Step: ...


def check_recordable(
    cuda_graphs: Choice, *, device: torch.device, task: StudentTask, processes: int, recompute: bool = False
) -> None:
    """Raise BadRequest if a job wants CUDA graphs where there can be none."""
    hindrances = {
        f"device {device}, which has no graphs": device.type != "cuda",
        f"{task.unsteady}": task.unsteady is not None,
        "recompute = true, which keeps the state of random numbers on the host": recompute,
        f"{processes} processes, which wait for each other in each step": processes > 1,
    }
    found = [hindrance for hindrance, there in hindrances.items() if there]
    if cuda_graphs == "always" and found:
        raise BadRequest(
            'cuda_graphs = "always", and these steps cannot be recorded',
            found=found[0],
            do='cuda_graphs = "auto", which records what can be',
        )


def is_recorded(cuda_graphs: Choice, blueprint: Blueprint, device: torch.device, *, recompute: bool = False) -> bool:
    """Return whether a student's steps are to be recorded; "auto" leaves out a user's own architectures."""
    wanted = cuda_graphs == "always" or (cuda_graphs == "auto" and ":" not in blueprint.architecture)
    return wanted and device.type == "cuda" and task_of(blueprint).unsteady is None and not recompute


class Unrecorded:
    """Has steps taken one kernel at a time.

    Attributes:
        records: whether a step may be replayed: its tensors must then stay where they are.
        refusal: why there is no recording although there was to be one, and will be none; None: there may be, or was
            not to be.
    """

    records = False

    def __init__(self) -> None:
        self.refusal: str | None = None

    def step(self, take: Take, batches: Sequence[Batch], *, measure_shares: bool) -> Step:
        """Have a step taken.

        Args:
            take: takes it; given each time, so that nobody is kept alive by a recorder.
            batches: of it.
            measure_shares: of each term in the gradient; such a step is not recorded.
        """
        return take(batches, measure_shares=measure_shares)


class Recorder(Unrecorded):
    """Has steps taken, from a recording as soon as there is one.

    Args:
        optimizer: one of torch's that the steps use.
    """

    records = True

    def __init__(self, optimizer: Optimizer | None = None):
        super().__init__()
        self._optimizer = optimizer
        self._taken: Counter[Kind] = Counter()
        self._recording: Recording | None = None
        _RECORDERS.add(self)  # to be asked for its memory

    def step(self, take: Take, batches: Sequence[Batch], *, measure_shares: bool) -> Step:
        if measure_shares or self.refusal is not None:
            return take(batches, measure_shares=measure_shares)
        kind = _kind(batches)
        if self._recording is None and self._taken[kind] >= WARM_STEPS:
            try:
                self._recording = Recording(kind, take, self._optimizer, batches)
            except Exception as error:  # whatever a model does that a graph cannot hold, or there is no memory
                self.refusal = _first_cause(error)
        if self._recording is not None and self._recording.kind == kind:
            return self._recording.replay(batches)
        self._taken[kind] += 1
        return take(batches, measure_shares=False)

    def forget(self) -> bool:
        """Give the memory of a recording back, if there is one, and record no more; return whether there was."""
        if self._recording is None:
            return False
        self._recording, self.refusal = None, "memory ran out"
        return True


_RECORDERS: WeakSet[Recorder] = WeakSet()  # weak: a recorder goes with its stepper


def forget_recordings() -> bool:
    """Give the memory of all recordings of this process back; return whether there were any."""
    found = [recorder.forget() for recorder in list(_RECORDERS)]
    return any(found)


class Recording:
    """One step as a CUDA graph.

    Args:
        kind: of its batches.
        take: the step, which is recorded and not taken.
        optimizer: of torch, that it uses.
        batches: one of each that it will be replayed on.
    """

    def __init__(self, kind: Kind, take: Take, optimizer: Optimizer | None, batches: Sequence[Batch]):
        copies = [batch.each(torch.clone) for batch in batches]  # the memory that replays read
        self.kind = kind
        self._inputs = [copy.tensors() for copy in copies]
        self._graph = torch.cuda.CUDAGraph()
        device = copies[0].shown.device
        self._pool = Pool.of(device)
        graph = torch.cuda.graph(self._graph, pool=self._pool.handle, capture_error_mode=OTHERS_GO_ON)
        # the graph innermost: it has ended, well or not, before the others clean up
        with _closed_if_it_fails(device, self._pool), _capturable(optimizer), graph:
            step = take(copies, measure_shares=False)
            self._figures = torch.stack([step.loss, *step.values])
        self._rows = step.rows

    def replay(self, batches: Sequence[Batch]) -> Step:
        """Take the step on other batches of the same kind."""
        figures = torch.empty_like(self._figures)  # before anything has changed: there may be no memory
        copy_tensors([batch.tensors() for batch in batches], self._inputs)
        self._graph.replay()
        figures.copy_(self._figures)  # which the next step, of whichever student, overwrites
        loss, *values = figures.unbind()
        return Step(loss, values, None, self._rows)


def copy_tensors(given: Sequence[Mapping[str, Tensor]], into: Sequence[Mapping[str, Tensor]]) -> None:
    """Copy tensors into others of the same names."""
    pairs = [(own[name], each[name]) for each, own in zip(given, into, strict=True) for name in own]
    torch._foreach_copy_([own for own, _ in pairs], [each for _, each in pairs])


def _kind(batches: Sequence[Batch]) -> Kind:
    return tuple(
        frozenset((name, values.shape, values.dtype) for name, values in batch.tensors().items()) for batch in batches
    )


def is_capturing() -> bool:
    """Return whether a step is being recorded now."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


OTHERS_GO_ON = "thread_local"  # the feed's threads may ask for memory while a step is recorded


class Pool:
    """Memory that all recordings of a device share while there are some; an empty graph keeps it.

    One is enough: no two of them run at a time, and what one has left there nobody reads after the next.
    """

    def __init__(self, device: torch.device):
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode=OTHERS_GO_ON):
            torch.zeros((), device=device)
        self.handle = self._graph.pool()

    @staticmethod
    def of(device: torch.device) -> Pool:
        """Return the pool of a device."""
        return _POOLS.get(device) or _POOLS.setdefault(device, Pool(device))


_POOLS: WeakValueDictionary[torch.device, Pool] = WeakValueDictionary()  # weak: a pool goes with its last recording


@contextlib.contextmanager
def _closed_if_it_fails(device: torch.device, pool: Pool) -> Iterator[None]:
    """Where a recording fails, close what torch leaves open: its stream, its pool, the generator of random numbers.

    Until then torch would take each draw for one that is recorded, and keep memory back that is free.
    """
    stream, before = torch.cuda.current_stream(device), torch.cuda.get_rng_state(device)
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        if _end_allocations(device, pool):
            _POOLS.pop(device, None)  # no further recording can be made in this one
            Pool.of(device)  # a graph that does not fail closes the generator
        torch.cuda.set_rng_state(before, device)
        raise


def _end_allocations(device: torch.device, pool: Pool) -> bool:
    """End what a recording has begun; return False if it came to its end by itself, as where memory ran out."""
    of_pool = (device.index or 0, pool.handle)  # None: the first
    try:
        torch._C._cuda_endAllocateToPool(*of_pool)  # noqa: SLF001 - nothing public does it
        torch._C._cuda_releasePool(*of_pool)  # noqa: SLF001
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _capturable(optimizer: Optimizer | None) -> Iterator[None]:
    """Tell an optimiser that it is recorded: it asks for a flag, of which it warns in any other step."""
    groups = [] if optimizer is None else [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def _first_cause(error: BaseException) -> str:
    """Return what went wrong first, and where: torch then finds a graph that did not come to its end."""
    while error.__context__ is not None and error.__context__.__traceback__ is not None:
        error = error.__context__
    frame = traceback.extract_tb(error.__traceback__)[-1]
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}  ({frame.filename}:{frame.lineno})"
