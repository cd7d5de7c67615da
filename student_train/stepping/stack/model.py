"""Stacked students as functions of their weights: what forward pass and losses make of a batch, for all at once.

M students, B rows, N sites that count, D width, C classes, K terms, G students of the same terms.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from student_train.feed.batches import Batch, Supervision
from student_train.losses.outputs import Outputs
from student_train.stepping.forward import Tapped, compiled
from student_train.stepping.stack.weights import StackedBuffers, StackedWeights
from student_train.stepping.state import TrainState
from student_train.tasks import task_of

Named = dict[str, Tensor]
STUDENT, TERMS = "student.", "terms."
LOOP_WARNING = "There is a performance drop because we have not yet implemented the batching rule"


@dataclass(frozen=True)
class SameTerms:
    """Students of a stack whose losses are computed in one go: their terms differ in weights alone.

    Attributes:
        members: their places in the stack, (G,).
        terms: the losses, of the first of them.
        view: number of what they see, among a step's batches.
    """

    members: Tensor
    terms: nn.Module
    view: int


class StackedModel:
    """The students of a stack and their losses, as functions of weights that lie side by side.

    Args:
        states: of the stack.
        views: for each, which of the step's batches it sees, from 0.
        weights: of `joint` of each state.
        buffers: of each student.

    Attributes:
        term_weights_MK: of the objectives.
        num_classes: logits of a site.
        way: how its students are stepped. If by sites, forward passes give what `scores` makes logits of.
    """

    def __init__(
        self, states: Sequence[TrainState], views: Sequence[int], weights: StackedWeights, buffers: StackedBuffers
    ):
        first = states[0]
        device = first.student.device
        self.num_classes = first.blueprint.num_classes
        self.way = task_of(first.blueprint).way
        self.term_weights_MK = torch.tensor(
            [[term.weight for term in state.options.objective] for state in states], device=device
        )
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=first.options.autocast == "bf16")
        self._views = list(views)
        self._differ = len(set(views)) > 1
        self._weights = weights
        self._buffers = buffers
        self._tapped = Tapped(first.student, first.layers)
        self._head = ScoresOnly(first.student)
        body = partial(_run_body, self._tapped)
        # parameters and buffers of each, inputs too only where views differ
        self._forward = compiled(vmap(body, in_dims=(0, 0, 0 if self._differ else None)), first.options.compile)
        self._alike = _same_terms(states, views)
        # Attention is a loop over the students on a CPU; whether that is too slow is measured (`running/team.py`).
        warnings.filterwarnings("ignore", LOOP_WARNING)

    def outputs(self, batches: Sequence[Batch]) -> Outputs:
        """Return what the students make of a step's rows: logits (M, B, C), or hidden states (M, B, L, D); layers."""
        inputs = batches[0].inputs
        if self._differ:
            inputs = torch.stack([batches[view].inputs for view in self._views])  # (M, B, …)
        logits_MBC, layers = self._forward(self._of_students(), self._buffers.blocks, inputs)
        return Outputs(logits_MBC, layers)

    def scores(self, hidden_MND: Tensor) -> Tensor:
        """Return the logits (M, N, C) of hidden states of some sites."""
        logits_MNC: Tensor = vmap(self._run_head)(self._of_students(), self._buffers.blocks, hidden_MND)
        return logits_MNC

    def terms(self, outputs: Outputs, given: Sequence[Supervision], *, apart: bool) -> list[Tensor]:
        """Return all students' terms before their weights, K of (M,): each with a graph of its own.

        Args:
            outputs: logits (M, B, C), and layers.
            given: what the losses see of the step's batches.
            apart: whether a gradient of each term is wanted, not of their sum alone.
        """
        found = [self._terms_of(alike, outputs, given[alike.view], apart) for alike in self._alike]
        if len(found) == 1:
            return list(found[0])
        order_M = torch.cat([alike.members for alike in self._alike]).argsort()  # back in the order of the stack
        return [torch.cat(values).index_select(0, order_M) for values in zip(*found, strict=True)]

    def release(self) -> None:
        """Leave the students as they were."""
        self._tapped.release()

    def _of_students(self) -> Named:
        return {name: values for name, values in self._weights.blocks.items() if name.startswith(STUDENT)}

    def _run_head(self, parameters: Named, buffers: Named, hidden_ND: Tensor) -> Tensor:
        logits_NC: Tensor = functional_call(self._head, (parameters, _of_student(buffers)), (hidden_ND,))
        return logits_NC

    def _terms_of(self, alike: SameTerms, outputs: Outputs, given: Supervision, apart: bool) -> tuple[Tensor, ...]:
        """Return the terms of students whose terms are the same, K of (G,)."""

        def run(parameters: Named, logits_BC: Tensor, layers: Named) -> tuple[Tensor, ...]:
            seen = (Outputs(logits_BC, layers), given)
            values: list[Tensor] = functional_call(alike.terms, parameters, seen, {"apart": apart})
            return tuple(values)

        own = {name.removeprefix(TERMS): v for name, v in self._weights.blocks.items() if name.startswith(TERMS)}
        logits_MBC, layers = outputs.logits_BC, outputs.layers
        # else all are of one kind, and nothing is copied
        if len(self._alike) > 1:
            own = {name: values.index_select(0, alike.members) for name, values in own.items()}
            layers = {name: values.index_select(0, alike.members) for name, values in layers.items()}
            logits_MBC = logits_MBC.index_select(0, alike.members)
        values: tuple[Tensor, ...] = vmap(run)(own, logits_MBC, layers)
        return values


class ScoresOnly(nn.Module):
    """A student of tokens of which only `scores` is run."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Return the logits (N, C) of some sites' hidden states."""
        logits_NC: Tensor = self.student.scores(hidden_ND)  # type: ignore[operator]
        return logits_NC


def _run_body(tapped: Tapped, parameters: Named, buffers: Named, inputs: Tensor) -> tuple[Tensor, Named]:
    outputs: Outputs = functional_call(tapped, (parameters, _of_student(buffers)), (inputs,))
    return outputs.logits_BC, outputs.layers


def _of_student(buffers: Named) -> Named:
    return {f"{STUDENT}{name}": values for name, values in buffers.items()}


def joint(state: TrainState) -> nn.ModuleDict:
    """Return a student and its losses as one module."""
    # without the dot, which naming adds
    return nn.ModuleDict({STUDENT[:-1]: state.student, TERMS[:-1]: state.objective.terms})


def _same_terms(states: Sequence[TrainState], views: Sequence[int]) -> list[SameTerms]:
    """Return the students of a stack by what their losses are, weights apart, and by what they see."""
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, (state, view) in enumerate(zip(states, views, strict=True)):
        # repr: terms may hold dicts, which no key can be
        alike[(view, *map(repr, state.options.losses))].append(place)
    return [
        SameTerms(
            torch.tensor(places, device=states[0].student.device),
            states[places[0]].objective.terms,
            views[places[0]],
        )
        for places in alike.values()
    ]
