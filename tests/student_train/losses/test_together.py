"""Labels and soft targets from one softmax: the values and the gradients of both terms by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from storage.targets.soft import DenseTargets, SoftTargets
from student_train.feed.batches import MixedLabels, Supervision
from student_train.losses import together
from student_train.losses.labels import labels_cross_entropy
from student_train.losses.objective import Objective
from student_train.losses.on_targets.kd import kd
from student_train.losses.outputs import Outputs, Shapes
from student_train.losses.together import Together, labels_and_kd
from student_train.options.terms import KdTerm, LabelsTerm, ObjectiveTerm
from tests.student_train.losses.toys import keep, normal

B, C = 6, 20
LABELS = LabelsTerm(loss="labels", weight=0.25)
KD = KdTerm(loss="kd", teacher="t", temperature=1.0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let any number of classes be enough, and note each time that both terms are computed together."""
    calls: list[int] = []

    def counting(*given: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return labels_and_kd(*given)

    monkeypatch.setattr(together, "FEWEST_CLASSES", 0)
    monkeypatch.setattr(together, "labels_and_kd", counting)
    return calls


@pytest.mark.parametrize(("k", "padding"), [(3, 0), (3, 2), (C, 0), (1, 1)])
@pytest.mark.parametrize("named", [True, False])
def test_both_have_the_values_and_the_gradients_that_they_have_alone(k: int, padding: int, named: bool) -> None:
    teacher_BC, student_BC = normal(B, C, scale=3.0), normal(B, C, seed=1).requires_grad_()
    ranked_BC = teacher_BC.argsort(dim=1, descending=True)
    labels_B = ranked_BC[:, 0 if named else C - 1]
    targets = keep(teacher_BC, k, padding=padding)
    found = labels_and_kd(student_BC, labels_B, targets)
    expected = (labels_cross_entropy(student_BC, labels_B), kd(student_BC, targets, temperature=1.0))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(0.25 * labels + kd_, student_BC)[0] for labels, kd_ in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def given_of(targets: SoftTargets, **more: Any) -> Supervision:
    return Supervision(torch.arange(B), {"t": targets}, **more)


def both_of(terms: list[ObjectiveTerm], given: Supervision, *, apart: bool = False) -> tuple[list[Tensor], Tensor]:
    """Return the terms' values, and the gradient of their sum."""
    student_BC = normal(B, C, seed=1).requires_grad_()
    losses = Objective(terms, Shapes({}, {}))(Outputs(student_BC), given, apart=apart)
    return losses.values, torch.autograd.grad(losses.total, student_BC)[0]


def test_an_objective_computes_them_together(counted: list[int]) -> None:
    given = given_of(keep(normal(B, C, scale=3.0), 4))
    terms = [LABELS, KdTerm(loss="kd", teacher="t", temperature=2.0), KD]
    values, gradient = both_of(terms, given)
    assert counted == [1]
    expected_values, expected = both_of(terms, given, apart=True)
    assert counted == [1]
    torch.testing.assert_close(values, expected_values)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "terms",
    [
        [LABELS, KdTerm(loss="kd", teacher="t", temperature=2.0)],
        [LabelsTerm(loss="labels", smoothing=0.1), KD],
        [KD],
        [LABELS],
        [LABELS, KdTerm(loss="kd", teachers={"t": 1.0, "u": 1.0}, temperature=1.0)],
    ],
)
def test_other_objectives_have_nothing_in_common(terms: list[ObjectiveTerm]) -> None:
    assert Together.of(terms) is None


def test_dense_targets_and_mixed_rows_are_computed_apart(counted: list[int]) -> None:
    teacher_BC = normal(B, C, scale=3.0)
    mixed = MixedLabels(torch.arange(B).flip(0), torch.full((B,), 0.5))
    for given in (given_of(DenseTargets(teacher_BC)), given_of(keep(teacher_BC, 4), mixed=mixed)):
        both_of([LABELS, KD], given)
    assert counted == []


def test_of_few_classes_they_are_computed_apart(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "FEWEST_CLASSES", C + 1)
    both_of([LABELS, KD], given_of(keep(normal(B, C), 4)))
    assert counted == []
