"""Students of one architecture as one program: their weights lie side by side, and a step is taken by all at once.

Each student's own modules become views of the stack's memory, so that what is evaluated, written and exported is the
same as if it were alone; only who computes the step is another. Learning rate, weight decay, momentum, temperature,
loss weights, view and seed are each student's own.

What draws random numbers in its forward pass (dropout) cannot be stacked: it would draw others than alone.

M students, P parameters of each, B rows, C classes, K terms.

Source: stacked parameters under `vmap`, as in the functorch tutorial on model ensembling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from student_train.feed.batches import Batch
from student_train.stepping.gradients import Step
from student_train.stepping.recorder import Recorder
from student_train.stepping.stack.model import STUDENT, TERMS, StackedModel, joint
from student_train.stepping.stack.step import stacked_gradients
from student_train.stepping.stack.weights import StackedBuffers, StackedOptimizer, StackedWeights
from student_train.stepping.state import TrainState


def stack_key(state: TrainState) -> tuple[Any, ...]:
    """Return what must be equal for two states to be one program."""
    options = state.options
    layout = tuple((name, tuple(p.shape), p.dtype) for name, p in joint(state).named_parameters())
    return (
        options.architecture,
        repr(sorted(options.options.items())),
        options.batch_size,
        options.optimizer,
        options.autocast,
        options.compile,
        options.mean,
        options.std,
        options.clip_norm is None,
        options.ema_decay is None,
        tuple((term.loss, term.name) for term in options.objective),
        state.layers,
        layout,
    )


class Stack:
    """M states that step together.

    Args:
        states: of one `stack_key`; their modules become views of this stack's memory.
        views: for each, which of the step's batches it sees, from 0.
        recorded: whether steps are to be recorded as CUDA graphs.
    """

    def __init__(self, states: Sequence[TrainState], views: Sequence[int] | None = None, *, recorded: bool = False):
        self.states = list(states)
        first = self.states[0]
        self._weights = StackedWeights([joint(state) for state in self.states])
        self._buffers = StackedBuffers([state.student for state in self.states])
        self._average = None
        if first.average is not None:
            averages = [state.average.student for state in self.states if state.average is not None]
            self._average = (StackedWeights(averages, trained=False), StackedBuffers(averages))
        self._num_student_weights = first.num_parameters  # of each row, the first; then come those of its losses
        self._optimizer = StackedOptimizer(self.states, self._weights)
        self._model = StackedModel(self.states, views or [0] * len(self.states), self._weights, self._buffers)
        self._recorder = Recorder() if recorded else None

    def step(self, batches: Sequence[Batch], rates: Sequence[float], number: int, *, measure_shares: bool) -> Step:
        """Let every student take a step.

        Args:
            batches: of the same rows, one for each view that is seen.
            rates: learning rates, M.
            number: of the step in the whole run, from 0.
            measure_shares: measure each term's share of the gradients, at the cost of a backward pass for each.
        """
        self._optimizer.set_rates(rates)
        if self._recorder is None:
            taken = self._take(batches, measure_shares=measure_shares)
        else:
            taken = self._recorder.step(self._take, batches, measure_shares=measure_shares)
        if self._average is not None:
            self._follow(number)
        return taken

    def evaluating(self, on: bool) -> None:
        """Put all students into evaluation mode, or back into training mode."""
        for state in self.states:
            state.student.train(not on)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return what the exported students make of one batch of inputs, (M, B, C) float32."""
        weights, buffers = self._average or (self._weights, self._buffers)
        own = {name: values for name, values in weights.blocks.items() if not name.startswith(TERMS)}

        def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            named = {name.removeprefix(STUDENT): values for name, values in parameters.items()}
            logits_BC: Tensor = functional_call(self.states[0].student, (named, buffers), (inputs,))
            return logits_BC

        return vmap(run)(own, buffers.blocks).float()

    def release(self) -> None:
        """Let others take the states."""
        self._model.release()
        self._optimizer.release()

    @property
    def refusal(self) -> str | None:
        """Return why its steps are not recorded although they were to be; None: they are, or were not to be."""
        return None if self._recorder is None else self._recorder.refusal

    def _take(self, batches: Sequence[Batch], *, measure_shares: bool) -> Step:
        kept = self._buffers.snapshot()
        self._weights.reached.clear()
        try:
            grads_MP, values_MK, shares_MK, rows = stacked_gradients(
                self._model,
                self._weights,
                batches,
                of_student=self._num_student_weights,
                measure_shares=measure_shares,
            )
            if self._weights.reached:  # else there was nothing to learn, such as a batch of padding
                with self._weights.unreached_kept():
                    self._optimizer.step(grads_MP)
        except BaseException:
            self._buffers.restore(kept)  # so that whoever tries these rows again has seen them once
            raise
        losses_M = (self._model.term_weights_MK * values_MK).sum(dim=1)
        return Step(losses_M, values_MK.unbind(dim=1), shares_MK, rows)

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        assert self._average is not None
        weights, buffers = self._average
        ramps = [state.average.weight_of(number) for state in self.states if state.average is not None]
        follow_M = torch.tensor(ramps, device=weights.values_MP.device)
        weights.values_MP.lerp_(self._weights.values_MP[:, : self._num_student_weights], follow_M[:, None])
        buffers.follow(self._buffers, follow_M)
