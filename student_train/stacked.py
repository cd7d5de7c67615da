"""Students of one architecture as one program: their weights lie side by side, and a step is taken by all at once.

Each student's own modules become views of the stack's memory, so that what is evaluated, written and exported is the
same as if it were alone; only who computes the step is another. Learning rate, weight decay, momentum, temperature,
loss weights, view and seed are each student's own.

What draws random numbers in its forward pass (dropout) cannot be stacked: it would draw others than alone.

M students, P parameters of each, B rows, C classes, K terms, G students of a group whose terms are the same.

Source: stacked parameters under `vmap`, as in the functorch tutorial on model ensembling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from student_train.compiled import compiled
from student_train.learner import Learner
from student_train.needs import Batch, Outputs
from student_train.objective import Tapped
from student_train.options import StudentOptions
from student_train.stacked_weights import StackedBuffers, StackedOptimizer, StackedWeights
from student_train.step import Step

STUDENT, TERMS = "student.", "terms."


def stack_key(learner: Learner) -> tuple[Any, ...]:
    """Return what must be equal for two learners to be one program."""
    options = learner.options
    layout = tuple((name, tuple(p.shape), p.dtype) for name, p in _joint(learner).named_parameters())
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
        layout,
    )


@dataclass(frozen=True)
class Group:
    """Students of a stack whose losses are computed in one go: their terms differ in weights alone.

    Attributes:
        members: their places in the stack, (G,).
        terms: the losses, of the first of them.
        batch: which of the step's batches they see.
    """

    members: Tensor
    terms: nn.Module
    batch: int


class Stack:
    """M learners that step together.

    Args:
        learners: of one `stack_key`; their modules become views of this stack's memory.
        views: for each, which of the step's batches it sees, from 0.
    """

    def __init__(self, learners: Sequence[Learner], views: Sequence[int] | None = None):
        self.learners = list(learners)
        first = self.learners[0]
        device = first.student.device
        self._views = list(views or [0] * len(self.learners))
        # Not for students of tokens, which compute their losses a part of the positions at a time.
        self._weights = StackedWeights([_joint(learner) for learner in self.learners])
        self._buffers = StackedBuffers([learner.student for learner in self.learners])
        self._average = None
        if first.average is not None:
            averages = [learner.average.student for learner in self.learners if learner.average is not None]
            self._average = (StackedWeights(averages, trained=False), StackedBuffers(averages))
        self._num_student_weights = first.num_parameters  # of each row, the first; then come those of its losses
        self._optimizer = StackedOptimizer(self.learners, self._weights)
        self._tapped = Tapped(first.student, first.layers)
        run = vmap(self._run_one, in_dims=(0, 0, 0 if self._differ else None))
        self._forward: Callable[..., Any] = compiled(run, first.options.compile)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=first.options.autocast == "bf16")
        self._term_weights_MK = torch.tensor(
            [[term.weight for term in learner.options.objective] for learner in self.learners], device=device
        )
        self._groups = _groups(self.learners, self._views)

    @property
    def _differ(self) -> bool:
        return len(set(self._views)) > 1

    def step(self, batches: Sequence[Batch], rates: Sequence[float], number: int, *, measure_shares: bool) -> Step:
        """Let every student take a step.

        Args:
            batches: of the same rows, one for each view that is seen.
            rates: learning rates, M.
            number: of the step in the whole run, from 0.
            measure_shares: measure each term's share of the gradients, at the cost of a backward pass for each.
        """
        kept = self._buffers.snapshot()
        self._weights.reached.clear()
        try:
            values_MK = self._losses(batches)
            parts_MK = self._term_weights_MK * values_MK
            if measure_shares:
                grads_MP, shares_MK = self._gradient_by_term(parts_MK)
            else:
                grads_MP, shares_MK = self._weights.gradient(parts_MK.sum()), None
            with self._weights.unreached_kept():
                self._optimizer.step(grads_MP, rates)
        except BaseException:
            self._buffers.restore(kept)  # so that whoever tries these rows again has seen them once
            raise
        if self._average is not None:
            self._follow(number)
        values_MK = values_MK.detach()
        return Step(parts_MK.detach().sum(dim=1), values_MK.unbind(dim=1), shares_MK, len(batches[0].inputs))

    def evaluating(self, on: bool) -> None:
        """Put all students into evaluation mode, or back into training mode."""
        for learner in self.learners:
            learner.student.train(not on)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return what the exported students make of one batch of inputs, (M, B, C) float32."""
        weights, buffers = self._average or (self._weights, self._buffers)
        own = {name: values for name, values in weights.blocks.items() if not name.startswith(TERMS)}

        def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            named = {name.removeprefix(STUDENT): values for name, values in parameters.items()}
            logits_BC: Tensor = functional_call(self.learners[0].student, (named, buffers), (inputs,))
            return logits_BC

        return vmap(run)(own, buffers.blocks).float()

    def release(self) -> None:
        """Let others take the learners."""
        self._tapped.release()

    def _losses(self, batches: Sequence[Batch]) -> Tensor:
        """Return each student's terms before their weights, (M, K)."""
        inputs = batches[0].inputs
        if self._differ:
            inputs = torch.stack([batches[view].inputs for view in self._views])
        student_weights = {name: values for name, values in self._weights.blocks.items() if name.startswith(STUDENT)}
        with self._autocast:
            logits_MBC, layers = self._forward(student_weights, self._buffers.blocks, inputs)
            found = [self._group_losses(group, logits_MBC, layers, batches[group.batch]) for group in self._groups]
        if len(found) == 1:
            return found[0]
        order_M = torch.cat([group.members for group in self._groups]).argsort()
        return torch.cat(found).index_select(0, order_M)

    def _run_one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        renamed = {f"{STUDENT}{name}": values for name, values in buffers.items()}
        outputs: Outputs = functional_call(self._tapped, (parameters, renamed), (inputs,))
        return outputs.logits_BC, outputs.layers

    def _group_losses(self, group: Group, logits_MBC: Tensor, layers: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the terms of a group's students, (G, K)."""
        given = batch.supervision()

        def run(parameters: dict[str, Tensor], logits_BC: Tensor, layers: dict[str, Tensor]) -> Tensor:
            values: list[Tensor] = functional_call(group.terms, parameters, (Outputs(logits_BC, layers), given))
            return torch.stack(values)

        own = {name.removeprefix(TERMS): v for name, v in self._weights.blocks.items() if name.startswith(TERMS)}
        if len(self._groups) > 1:
            own = {name: values.index_select(0, group.members) for name, values in own.items()}
            layers = {name: values.index_select(0, group.members) for name, values in layers.items()}
            logits_MBC = logits_MBC.index_select(0, group.members)
        return vmap(run)(own, logits_MBC, layers)

    def _gradient_by_term(self, parts_MK: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of all terms, (M, P), and each one's share of the norms over the students' weights."""
        grads_MP, norms, terms = torch.zeros_like(self._weights.values_MP), [], parts_MK.shape[1]
        for term in range(terms):
            own_MP = self._weights.gradient(parts_MK[:, term].sum(), keep_graph=term + 1 < terms)
            norms.append(own_MP[:, : self._num_student_weights].norm(dim=1))
            grads_MP += own_MP
        norms_MK = torch.stack(norms, dim=1)
        return grads_MP, norms_MK / norms_MK.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        assert self._average is not None
        weights, buffers = self._average
        ramps = [learner.average.weight_of(number) for learner in self.learners if learner.average is not None]
        follow_M = torch.tensor(ramps, device=weights.values_MP.device)
        weights.values_MP.lerp_(self._weights.values_MP[:, : self._num_student_weights], follow_M[:, None])
        buffers.follow(self._buffers, follow_M)


def _joint(learner: Learner) -> nn.ModuleDict:
    """Return a learner's student and losses as one module."""
    return nn.ModuleDict({STUDENT[:-1]: learner.student, TERMS[:-1]: learner.objective.terms})


def _groups(learners: Sequence[Learner], views: Sequence[int]) -> list[Group]:
    """Return the students of a stack by what their losses are, weights apart, and by what they see."""
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, (learner, view) in enumerate(zip(learners, views, strict=True)):
        alike[(view, *map(repr, _without_weights(learner.options)))].append(place)
    return [
        Group(
            torch.tensor(places, device=learners[0].student.device),
            learners[places[0]].objective.terms,
            views[places[0]],
        )
        for places in alike.values()
    ]


def _without_weights(options: StudentOptions) -> list[Any]:
    return [term.model_copy(update={"weight": 1.0}) for term in options.objective]
