"""One student that steps by itself: forward, losses, backward, update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from student_train.feed.batches import Batch
from student_train.stepping.forward import Tapped, compiled
from student_train.stepping.gradients.parts import accumulate_in_parts
from student_train.stepping.gradients.rows import Model, Step
from student_train.stepping.gradients.ways import WAYS
from student_train.stepping.parallel import ALONE, Parallel, fill_missing, forget_unreached
from student_train.stepping.recorder import Recorder, Unrecorded, is_capturing
from student_train.stepping.state import TrainState
from student_train.tasks import task_of


class Alone:
    """The stepper of one state, in any company.

    Args:
        state: what they change.
        parallel: this process among those that train it.
        recorded: whether steps are to be recorded as CUDA graphs.
    """

    def __init__(self, state: TrainState, parallel: Parallel = ALONE, *, recorded: bool = False):
        self.states = [state]
        self._parallel = parallel
        self._state = state
        self._trained = state.trained
        if state.average is not None:
            state.average.bind(state.student)  # a stack may have moved its weights
        device = state.student.device
        self._tapped = Tapped(state.student, state.layers)
        forward: Callable[..., Any] = compiled(self._tapped, state.options.compile)
        self._way = WAYS[task_of(state.blueprint).way]
        self._accumulate = partial(
            accumulate_in_parts,
            self._way,
            state.options.micro_batch_size,
            Model(state.student, forward, state.objective, self._trained, state.blueprint.num_classes),
            autocast=torch.autocast(device.type, torch.bfloat16, enabled=state.options.autocast == "bf16"),
        )
        self._recorder = Recorder(state.optimizer) if recorded else Unrecorded()
        self._rate = torch.zeros((), device=device)  # where a recorded step finds its learning rate

    def step(self, batches: Sequence[Batch], rates: Sequence[float], number: int, *, measure_shares: bool) -> Step:
        state = self._state
        rate = self._rate.fill_(rates[0]) if self._recorder.records else rates[0]
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        with state.randomness:  # dropout draws numbers of the student's own
            taken = self._recorder.step(self._take, batches, measure_shares=measure_shares)
        if state.average is not None:
            state.average.update(number)
        return taken

    @property
    def refusal(self) -> str | None:
        return self._recorder.refusal

    def evaluating(self, on: bool) -> None:
        self._state.exported.eval()
        self._state.student.train(not on)  # last: without an average the two are one

    def logits(self, inputs: Tensor) -> Tensor:
        logits_BC: Tensor = self._state.exported(inputs)
        return logits_BC.float()[None]  # (1, B, C)

    def release(self) -> None:
        self._tapped.release()

    def _take(self, batches: Sequence[Batch], *, measure_shares: bool) -> Step:
        state = self._state
        accumulate = self._accumulate if self._parallel.size == 1 else self._accumulate_in_parallel
        with self._undone_if_it_fails():
            taken = accumulate(batches[0], measure_shares=measure_shares)
            if state.options.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._trained, state.options.clip_norm)
            state.optimizer.step()
        state.optimizer.zero_grad()  # gone before the next student's step
        return taken

    @contextlib.contextmanager
    def _undone_if_it_fails(self) -> Iterator[None]:
        """Leave all as it was before a step that fails half-way: its rows may be tried again, without recordings.

        Batch norm's statistics too, where steps are recorded: then few steps are taken here, and it costs little.
        """
        state, kept = self._state, []
        first = not state.optimizer.state  # a first step makes the optimiser's state
        # not while it is recorded: the copies would be recorded too
        if self._recorder.records and not is_capturing():
            kept = [(buffer, buffer.clone()) for buffer in state.student.buffers()]
        try:
            yield
        except BaseException:
            for buffer, values in kept:
                buffer.copy_(values)
            if first:
                state.optimizer.state.clear()
            state.optimizer.zero_grad()
            raise

    def _accumulate_in_parallel(self, batch: Batch, *, measure_shares: bool) -> Step:
        """Have the gradient of the mean over the whole batch, of which each process has computed its own rows."""
        rows = self._way.num_sites(batch)
        # no single row, over which batch norm has no variance
        mine, device = self._parallel.part(batch, least=2), batch.inputs.device
        # of a process that has no rows of this batch
        nothing = [torch.zeros((), device=device) for _ in self._state.objective.names]
        taken = Step(torch.zeros((), device=device), nothing, None, 0)
        if len(mine.inputs):
            taken = self._accumulate(mine, measure_shares=measure_shares)
        all_reached = all(parameter.grad is not None for parameter in self._trained)
        reached_P = fill_missing(self._trained)
        shares = taken.shares
        if measure_shares and shares is None:
            shares = torch.zeros(len(nothing), device=device)
        figures = [value.clone() for value in (taken.loss, *taken.values)]  # copies: they are averaged in place
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        averaged = [*gradients, *figures, reached_P, *([] if shares is None else [shares])]
        self._parallel.average(averaged, taken.rows / max(rows, 1))
        if not all_reached:  # else none is unreached, and nobody need wait for the device
            forget_unreached(self._trained, reached_P)
        return Step(figures[0], figures[1:], shares, rows)

    def synchronise(self) -> None:
        # one student or two: by id, so that none is averaged twice
        for student in {id(s): s for s in (self._state.student, self._state.exported)}.values():
            # a count of batches is no mean
            floats = [buffer for buffer in student.buffers() if buffer.is_floating_point()]
            self._parallel.average(floats, 1 / self._parallel.size)
