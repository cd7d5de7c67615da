"""An objective: a weighted sum of losses, what they need of the cache and which layers of a student they look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from student_train.feed.batches import Needs, Supervision
from student_train.losses import LOSSES
from student_train.losses.outputs import Outputs, Shapes
from student_train.losses.together import Together
from student_train.options.terms import FeatureTerm, ObjectiveTerm


class Losses(NamedTuple):
    """What an objective gives for a batch, scalars.

    Attributes:
        total: the weighted sum.
        values: each term before its weight, without gradient.
        parts: each term after its weight.
    """

    total: Tensor
    values: list[Tensor]
    parts: list[Tensor]


class Terms(nn.ModuleList):
    """The losses of an objective, as one module: what a stack of students runs for all of them at once."""

    def __init__(self, terms: Sequence[ObjectiveTerm], shapes: Shapes):
        super().__init__([LOSSES[term.loss].term(term, shapes) for term in terms])
        self._together = Together.of(terms)

    def forward(self, outputs: Outputs, given: Supervision, *, apart: bool = False) -> list[Tensor]:
        """Return each term before its weight, scalars; `apart` if each is to have a gradient of its own."""
        shared = {} if apart or self._together is None else self._together.values(outputs, given)
        return [shared[place] if place in shared else term(outputs, given) for place, term in enumerate(self)]


class Objective(nn.Module):
    """A weighted sum of losses; what they learn themselves (projections) is trained with the student and dropped.

    Args:
        terms: of the job.
        shapes: of the layers and targets that they use.
    """

    def __init__(self, terms: Sequence[ObjectiveTerm], shapes: Shapes):
        super().__init__()
        self.names = term_names(terms)
        self.weights = [term.weight for term in terms]
        self.terms = Terms(terms, shapes)

    def forward(self, outputs: Outputs, given: Supervision, *, apart: bool = False) -> Losses:
        """Return the weighted sum, and each term before and after its weight.

        Args:
            outputs: of the student.
            given: what it learns from.
            apart: whether a gradient of each term is wanted, not of their sum alone.
        """
        values = self.terms(outputs, given, apart=apart)
        # A weight of 1 is no operation: of small students' steps it would be some percent, there and back.
        parts = [v if weight == 1 else weight * v for weight, v in zip(self.weights, values, strict=True)]
        total = parts[0]  # not sum(), whose 0 + is an operation too
        for part in parts[1:]:
            total = total + part
        return Losses(total, [value.detach() for value in values], parts)


def term_names(terms: Sequence[ObjectiveTerm]) -> list[str]:
    """Return a name for each term, all different: "labels", "kd:cnn", "kd:cnn#2", "hint:cnn/stage2"."""
    seen: Counter[str] = Counter()
    names = []
    for term in terms:
        seen[term.name] += 1
        names.append(term.name if seen[term.name] == 1 else f"{term.name}#{seen[term.name]}")
    return names


def objective_needs(terms: Sequence[ObjectiveTerm]) -> Needs:
    """Return what all terms together need of the cache."""
    needs = Needs()
    for term in terms:
        needs |= LOSSES[term.loss].needs(term)
    return needs


def student_layers(terms: Sequence[ObjectiveTerm]) -> tuple[str, ...]:
    """Return the layers of the student that the terms look at, sorted."""
    return tuple(sorted({term.student_layer for term in terms if isinstance(term, FeatureTerm)}))
