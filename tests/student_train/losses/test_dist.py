from __future__ import annotations

import numpy as np
import pytest
import torch

from storage.targets.soft import DenseTargets
from student_train.feed.batches import Needs, SoftNeed
from student_train.losses import LOSSES
from student_train.losses.on_targets.dist import dist
from tests.student_train.losses.toys import keep, normal, remedies, sparse, term

TEACHER_BC, STUDENT_BC = normal(8, 6, scale=2.0), normal(8, 6, seed=1)


def pearson(axis: int, temperature: float) -> float:
    """Return the mean correlation of rows (axis 1) or columns (axis 0), as numpy computes it."""
    p, q = ((each / temperature).softmax(1).double().numpy() for each in (TEACHER_BC, STUDENT_BC))
    pairs = zip(p, q, strict=True) if axis else zip(p.T, q.T, strict=True)
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]))


def test_rows_and_columns_are_pearsons_correlations() -> None:
    targets = DenseTargets(TEACHER_BC)
    rows = dist(STUDENT_BC, targets, temperature=2.0, beta=3.0, gamma=0.0)
    columns = dist(STUDENT_BC, targets, temperature=2.0, beta=0.0, gamma=2.0)
    assert rows.item() == pytest.approx(3 * (1 - pearson(1, 2.0)), rel=1e-4)
    assert columns.item() == pytest.approx(2 * (1 - pearson(0, 2.0)), rel=1e-4)


def test_rows_of_sparse_targets_spread_the_rest_evenly_and_know_the_sum_of_squares() -> None:
    p, q, k = np.array([0.6, 0.2, 0.15, 0.05]), np.array([0.3, 0.4, 0.2, 0.1]), 2
    product = (p[:k] * q[:k]).sum() + p[k:].sum() / 2 * q[k:].sum()
    correlation = (product - 1 / 4) / np.sqrt(((p**2).sum() - 1 / 4) * ((q**2).sum() - 1 / 4))
    targets = keep(torch.tensor(p)[None].log(), k)
    value = dist(torch.tensor(q)[None].log(), targets, temperature=1.0, beta=1.0, gamma=0.0)
    assert value.item() == pytest.approx(1 - correlation, rel=1e-4)


def test_a_sum_of_squares_that_was_rounded_down_gives_no_correlation_above_1() -> None:
    targets = keep(TEACHER_BC, 6)
    assert targets.statistics is not None
    targets.statistics.sum_squares_BT.mul_(0.9)
    assert dist(TEACHER_BC, targets, temperature=1.0, beta=1.0, gamma=0.0).item() >= -1e-5


def test_a_batch_of_one_row_has_no_columns_to_correlate() -> None:
    student_BC = STUDENT_BC[:1].clone().requires_grad_()
    value = dist(student_BC, DenseTargets(TEACHER_BC[:1]), temperature=1.0, beta=0.0, gamma=1.0)
    value.backward()
    assert student_BC.grad is not None
    assert (value.item(), student_BC.grad.abs().max().item()) == (1.0, 0.0)


def test_columns_of_sparse_targets_are_refused_unless_allowed_by_name() -> None:
    assert any('kind = "dense"' in remedy for remedy in remedies(term("dist"), sparse()))
    assert remedies(term("dist", allow_approximate_columns=True), sparse()) == []
    assert remedies(term("dist", gamma=0.0), sparse()) == []


def test_rows_need_the_sum_of_squares() -> None:
    assert remedies(term("dist", gamma=0.0), sparse(statistics=False)) == ["encoding.statistics = true"]


def test_a_mixture_needs_every_logit_whatever_is_allowed() -> None:
    made = term("dist", teachers=["a", "b"], allow_approximate_columns=True)
    needs = LOSSES["dist"].needs(made)
    assert isinstance(needs, Needs)
    assert {(need.teacher, need.capability.name) for need in needs.soft} == {("a", "logits"), ("b", "logits")}
    assert all(isinstance(need, SoftNeed) for need in needs.soft)


def test_only_columns_couple_rows() -> None:
    assert [LOSSES["dist"].couples_rows(term("dist", gamma=gamma)) for gamma in (0.0, 1.0)] == [False, True]
