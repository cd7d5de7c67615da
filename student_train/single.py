"""One student that steps by itself: forward, losses, backward, update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from student_train.compiled import compiled
from student_train.learner import Learner
from student_train.needs import Batch
from student_train.objective import Tapped
from student_train.parallel import ALONE, Parallel
from student_train.positions import accumulate_over_positions
from student_train.recorder import Recorder, is_capturing
from student_train.step import Model, Step, accumulate_gradients


class Single:
    """One learner that takes its own steps, in any company.

    Args:
        learner: what they change.
        parallel: this process among those that train it.
        recorded: whether steps are to be recorded as CUDA graphs.
    """

    def __init__(self, learner: Learner, parallel: Parallel = ALONE, *, recorded: bool = False):
        self.learners = [learner]
        self._parallel = parallel
        self._learner = learner
        self._trained = learner.trained
        if learner.average is not None:
            learner.average.bind(learner.student)  # a stack may have moved its weights
        device = learner.student.device
        self._tapped = Tapped(learner.student, learner.layers)
        forward: Callable[..., Any] = compiled(self._tapped, learner.options.compile)
        accumulate = accumulate_over_positions if learner.spec.of_tokens else accumulate_gradients
        self._accumulate = partial(
            accumulate,
            Model(learner.student, forward, learner.objective, self._trained, learner.spec.num_classes),
            autocast=torch.autocast(device.type, torch.bfloat16, enabled=learner.options.autocast == "bf16"),
        )
        self._recorder = Recorder(learner.optimizer) if recorded else None
        self._rate = torch.zeros((), device=device)  # where a recorded step finds its learning rate

    def step(self, batches: Sequence[Batch], rates: Sequence[float], number: int, *, measure_shares: bool) -> Step:
        """Take a step.

        Args:
            batches: one.
            rates: one learning rate.
            number: of the step in the whole run, from 0.
            measure_shares: measure each term's share of the gradient, at the cost of a backward pass for each.
        """
        learner = self._learner
        rate = rates[0] if self._recorder is None else self._rate.fill_(rates[0])
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        with learner.randomness:
            if self._recorder is None:
                taken = self._take(batches, measure_shares=measure_shares)
            else:
                taken = self._recorder.step(self._take, batches, measure_shares=measure_shares)
        if learner.average is not None:
            learner.average.update(number)
        return taken

    @property
    def refusal(self) -> str | None:
        """Return why its steps are not recorded although they were to be; None: they are, or were not to be."""
        return None if self._recorder is None else self._recorder.refusal

    def evaluating(self, on: bool) -> None:
        """Put what is exported into evaluation mode, or the student back into training mode."""
        self._learner.exported.eval()
        self._learner.student.train(not on)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return what the exported student makes of a batch of inputs, (1, B, C) float32."""
        logits_BC: Tensor = self._learner.exported(inputs)
        return logits_BC.float()[None]

    def release(self) -> None:
        """Let others take the learner."""
        self._tapped.release()

    def _take(self, batches: Sequence[Batch], *, measure_shares: bool) -> Step:
        learner = self._learner
        accumulate = self._accumulate if self._parallel.size == 1 else self._accumulate_in_parallel
        with self._undone_if_it_fails():
            taken = accumulate(batches[0], measure_shares=measure_shares)
            if learner.options.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._trained, learner.options.clip_norm)
            learner.optimizer.step()
        learner.optimizer.zero_grad()
        return taken

    @contextlib.contextmanager
    def _undone_if_it_fails(self) -> Iterator[None]:
        """Leave all as it was before a step that fails half-way: its rows may be tried again, without recordings.

        Batch norm's statistics too, where steps are recorded: then few steps are taken here, and it costs little.
        """
        learner, kept = self._learner, []
        first = not learner.optimizer.state
        if self._recorder is not None and not is_capturing():
            kept = [(buffer, buffer.clone()) for buffer in learner.student.buffers()]
        try:
            yield
        except BaseException:
            for buffer, values in kept:
                buffer.copy_(values)
            if first:
                learner.optimizer.state.clear()
            learner.optimizer.zero_grad()
            raise

    def _accumulate_in_parallel(self, batch: Batch, *, measure_shares: bool) -> Step:
        """Have the gradient of the mean over the whole batch, of which each process has computed its own rows."""
        rows = len(batch.positions()) if self._learner.spec.of_tokens else len(batch.inputs)
        mine, device = self._parallel.part(batch), batch.inputs.device
        nothing = [torch.zeros((), device=device) for _ in self._learner.objective.names]
        taken = Step(torch.zeros((), device=device), nothing, None, 0)
        if len(mine.inputs):
            taken = self._accumulate(mine, measure_shares=measure_shares)
        missing = [parameter for parameter in self._trained if parameter.grad is None]
        reached = torch.tensor([float(parameter.grad is not None) for parameter in self._trained], device=device)
        for parameter in missing:
            parameter.grad = torch.zeros_like(parameter)
        shares = taken.shares
        if measure_shares and shares is None:
            shares = torch.zeros(len(nothing), device=device)
        figures = [value.clone() for value in (taken.loss, *taken.values)]
        gradients = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        share = taken.rows / max(rows, 1)
        self._parallel.average([*gradients, *figures, reached, *([] if shares is None else [shares])], share)
        if missing:
            for parameter, weight in zip(self._trained, reached.tolist(), strict=True):
                if weight == 0:  # no loss reaches it in any process: it is not to decay
                    parameter.grad = None
        return Step(figures[0], figures[1:], shares, rows)

    def synchronise(self) -> None:
        """Make batch norm's statistics the mean of all processes'."""
        for student in {id(s): s for s in (self._learner.student, self._learner.exported)}.values():
            floats = [buffer for buffer in student.buffers() if buffer.is_floating_point()]
            self._parallel.average(floats, 1 / self._parallel.size)
