"""Students of one architecture as one program: their weights lie side by side, and a step is taken by all at once.

Each student's own modules become views of the stack's memory, so that what is evaluated, written and exported is the
same as if it were alone; only who computes the step is another. Learning rate, weight decay, momentum, temperature,
loss weights, view and seed are each student's own.

What draws random numbers in its forward pass (dropout) cannot be stacked: it would draw others than alone.

M students, P parameters of each, B rows, C classes, K terms.

Source: stacked parameters under `vmap`, as in the functorch tutorial on model ensembling.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from student_train.feed.batches import Batch
from student_train.options.sections import StudentOptions
from student_train.stepping.gradients.rows import Step
from student_train.stepping.recorder import Recorder, Unrecorded
from student_train.stepping.stack.model import STUDENT, TERMS, StackedModel, joint
from student_train.stepping.stack.step import stacked_gradients
from student_train.stepping.stack.weights import StackedBuffers, StackedOptimizer, StackedWeights
from student_train.stepping.state import TrainState
from student_train.students import Blueprint
from student_train.students.transformers import ARCHITECTURE as TRANSFORMERS


def stack_key(options: StudentOptions, blueprint: Blueprint) -> Hashable:
    """Return what must be equal for students to be one program: all that decides shapes, and which code is run.

    Whether they then can be one is found out by trying (`running/stacking.py`): what draws random numbers cannot.
    """
    return (
        repr(blueprint),
        # one of transformers steps alone: much of its code is none that M students could share
        options.name if blueprint.architecture == TRANSFORMERS else None,
        # likewise: what a backward pass runs again is no part of what is run for all
        options.name if options.recompute else None,
        options.batch_size,
        options.micro_batch_size,
        options.optimizer,
        options.autocast,
        options.compile,
        # whether, not how much: the values are each student's own
        options.clip_norm is None,
        options.ema_decay is None,
        options.decay_norms_and_biases,
        options.optimizer == "adamw" and (options.adamw_betas[1], options.eps),
        tuple(term.layout for term in options.objective),
    )


class Stack:
    """The stepper of M states.

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
        self._recorder = Recorder() if recorded else Unrecorded()

    def step(self, batches: Sequence[Batch], rates: Sequence[float], number: int, *, measure_shares: bool) -> Step:
        self._optimizer.set_rates(rates)
        taken = self._recorder.step(self._take, batches, measure_shares=measure_shares)
        if self._average is not None:
            self._follow(number)
        return taken

    def evaluating(self, on: bool) -> None:
        for state in self.states:
            state.student.train(not on)

    def logits(self, inputs: Tensor) -> Tensor:
        weights, buffers = self._average or (self._weights, self._buffers)
        own = {name: values for name, values in weights.blocks.items() if not name.startswith(TERMS)}

        def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            named = {name.removeprefix(STUDENT): values for name, values in parameters.items()}
            logits_BC: Tensor = functional_call(self.states[0].student, (named, buffers), (inputs,))
            return logits_BC

        return vmap(run)(own, buffers.blocks).float()

    def release(self) -> None:
        self._model.release()
        self._optimizer.release()

    @property
    def refusal(self) -> str | None:
        return self._recorder.refusal

    def synchronise(self) -> None:
        pass  # students of several processes are not stacked

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
                rows_at_once=self.states[0].options.micro_batch_size,
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
        # an average has no part of what the losses learn
        weights.values_MP.lerp_(self._weights.values_MP[:, : self._num_student_weights], follow_M[:, None])
        buffers.follow(self._buffers, follow_M)
