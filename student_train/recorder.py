"""Steps as CUDA graphs: what a step tells a GPU to do is recorded once and replayed, without Python between kernels.

A small student's step is hundreds of kernels, each of which takes less time than to launch it: recorded, it takes half
the time or less, and ends at the same weights (docs/log.md). Steps on batches of one kind are recorded; others, such as
the last of an epoch, and those that measure each term's share, are taken as they are on a CPU.

A recording repeats what it saw: what a model decides in Python, by what it is given or at random, it would decide once
for the whole run. So a user's own model is recorded only where its job says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch.optim import Optimizer

from storage.errors import BadRequest, StillroomError
from student_train.devices import is_out_of_memory
from student_train.needs import Batch
from student_train.options import StudentOptions
from student_train.step import Step

CudaGraphs = Literal["auto"] | bool
WARM_STEPS = 2  # on batches of one kind, taken before one is recorded: they make what is made once


class Take(Protocol):
    """A step on one batch for each view: all that it changes lies on the device, in memory that stays."""

    def __call__(self, batches: Sequence[Batch], *, measure_shares: bool) -> Step: ...


def check_recordable(options: StudentOptions, *, of_tokens: bool, processes: int, device: torch.device) -> None:
    """Raise BadRequest if a job wants CUDA graphs where there can be none."""
    if options.cuda_graphs is not True:
        return
    hindrance = None
    if device.type != "cuda":
        hindrance = f"device {device}, which has no graphs"
    elif of_tokens:
        hindrance = "rows of tokens: how many of their positions count is another number in each batch"
    elif processes > 1:
        hindrance = f"{processes} processes, which wait for each other in each step"
    if hindrance is not None:
        raise BadRequest(
            f"student {options.name} has cuda_graphs = true, and its steps cannot be recorded",
            found=hindrance,
            do='cuda_graphs = "auto", which records where that is possible, or false',
        )


def is_recorded(options: StudentOptions, *, of_tokens: bool, processes: int, device: torch.device) -> bool:
    """Return whether a student's steps are recorded: of built-in architectures wherever they can be."""
    able = device.type == "cuda" and not of_tokens and processes == 1
    return able and (options.cuda_graphs is True or (options.cuda_graphs == "auto" and ":" not in options.architecture))


class Recorder:
    """Takes steps, from a recording as soon as there is one.

    Args:
        take: a step.
        options: of the student, or of one of those that take it together; where they ask for CUDA graphs, a step that
            cannot be recorded is an error, else it is taken unrecorded.
        optimizer: one of torch's that it uses.
    """

    def __init__(self, take: Take, options: StudentOptions, optimizer: Optimizer | None = None):
        self._take = take
        self._options = options
        self._optimizer = optimizer
        self._kind: list[Any] = []
        self._warm_steps = 0
        self._recording: Recording | None = None
        self._given_up = False

    def step(self, batches: Sequence[Batch], *, measure_shares: bool) -> Step:
        """Take a step.

        Raises:
            StillroomError: it cannot be recorded, and must be.
        """
        if measure_shares or self._given_up:
            return self._take(batches, measure_shares=measure_shares)
        kind = [(values.shape, values.dtype) for batch in batches for values in batch.tensors()]
        if self._recording is not None:
            if kind == self._kind:
                return self._recording.replay(batches)
            return self._take(batches, measure_shares=False)
        self._warm_steps = self._warm_steps + 1 if kind == self._kind else 1
        self._kind = kind
        if self._warm_steps > WARM_STEPS:
            self._record(batches)
        if self._recording is not None:
            return self._recording.replay(batches)
        return self._take(batches, measure_shares=False)

    def _record(self, batches: Sequence[Batch]) -> None:
        try:
            self._recording = Recording(self._take, self._optimizer, batches)
        except Exception as error:  # whatever a model does that a graph cannot hold
            self._given_up = True
            if self._optimizer is not None:
                self._optimizer.zero_grad()
            if self._options.cuda_graphs is True and not is_out_of_memory(error):
                raise StillroomError(
                    f"steps of student {self._options.name} cannot be recorded as a CUDA graph",
                    found=(str(error).splitlines() or [type(error).__name__])[0],
                    do="cuda_graphs = false",
                ) from None


class Recording:
    """One step as a CUDA graph.

    Args:
        take: the step, which is recorded and not taken.
        optimizer: of torch, that it uses.
        batches: of the kind that it will be replayed on.
    """

    def __init__(self, take: Take, optimizer: Optimizer | None, batches: Sequence[Batch]):
        copies = [batch.each(torch.clone) for batch in batches]
        self._inputs = [values for batch in copies for values in batch.tensors()]
        self._graph = torch.cuda.CUDAGraph()
        device = self._inputs[0].device
        graph = torch.cuda.graph(  # the feed's threads may go on asking for memory
            self._graph, pool=_anchor(device).pool(), capture_error_mode="thread_local"
        )
        with _closed_if_it_fails(device), _capturable(optimizer), graph:
            step = take(copies, measure_shares=False)
            self._figures = torch.stack([step.loss, *step.values])
        self._rows = step.rows

    def replay(self, batches: Sequence[Batch]) -> Step:
        """Take the step on other batches of the same kind."""
        torch._foreach_copy_(self._inputs, [values for batch in batches for values in batch.tensors()])
        self._graph.replay()
        loss, *values = self._figures.clone().unbind()  # the next step, of whichever student, overwrites them
        return Step(loss, values, None, self._rows)


@cache
def _anchor(device: torch.device) -> torch.cuda.CUDAGraph:
    """Return an empty graph that keeps the pool alive in which all recordings have their memory.

    One pool is enough: no two of them run at a time, and what one has left there nobody reads after the next.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros((), device=device)
    return graph


@contextlib.contextmanager
def _closed_if_it_fails(device: torch.device) -> Iterator[None]:
    """Where a recording fails, close what torch leaves open: its pool, and the generator of random numbers.

    Until then torch would take each draw for one that is recorded, and keep memory back that is free.
    """
    before, pool = torch.cuda.get_rng_state(device), _anchor(device).pool()
    try:
        yield
    except BaseException:
        with contextlib.suppress(RuntimeError):  # it is closed, if the graph itself came to its end
            torch._C._cuda_endAllocateToPool(device.index or 0, pool)  # noqa: SLF001 - nothing public does it
        _anchor.cache_clear()
        _anchor(device)  # a graph that does not fail closes the generator
        torch.cuda.set_rng_state(before, device)
        raise


@contextlib.contextmanager
def _capturable(optimizer: Optimizer | None) -> Iterator[None]:
    """Tell an optimiser that it is recorded: it asks for a flag, of which it warns in any other step."""
    groups: list[dict[str, Any]] = [] if optimizer is None else optimizer.param_groups
    flagged = [group for group in groups if "capturable" in group]
    for group in flagged:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in flagged:
            group["capturable"] = False
