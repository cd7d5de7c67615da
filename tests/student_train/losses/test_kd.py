from __future__ import annotations

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.targets.soft import DenseTargets
from student_train.losses.on_targets.kd import kd
from tests.student_train.losses.toys import TEMPERATURES, keep, normal


def test_kd_is_the_divergence_at_the_temperature_times_its_square() -> None:
    # T = 2: teacher (0, 2 log 3) has p = (1/4, 3/4), student (0, 0) has q = (1/2, 1/2)
    value = kd(torch.zeros(1, 2), DenseTargets(torch.tensor([[0.0, 2 * log(3.0)]])), temperature=2.0)
    assert value.item() == pytest.approx(4 * (0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5)))


def test_kd_of_sparse_targets_counts_all_that_is_not_kept_as_one_class() -> None:
    # p = (1/2, 1/4, 1/8, 1/8), two kept; q = 1/4 each
    targets = keep(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), 2)
    expected = 0.5 * log(0.5 / 0.25) + 0.25 * log(0.25 / 0.25) + 0.25 * log(0.25 / 0.5)
    assert kd(torch.zeros(1, 4), targets, temperature=1.0).item() == pytest.approx(expected)


def test_the_bucket_of_another_temperature_has_that_temperatures_mass() -> None:
    # at T = 2 the largest of (4 log 3, 0, 0) has 9/11, not the 81/83 of T = 1
    value = kd(torch.zeros(1, 3), keep(torch.tensor([[4 * log(3.0), 0.0, 0.0]]), 1), temperature=2.0)
    assert value.item() == pytest.approx(4 * (9 / 11 * log(9 / 11 * 3) + 2 / 11 * log(2 / 11 * 3 / 2)))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.sampled_from(TEMPERATURES), st.integers(0, 10_000), st.floats(0.1, 8))
def test_a_bucket_never_makes_it_larger_and_never_negative(k: int, temperature: float, seed: int, scale: float) -> None:
    teacher_BC, student_BC = normal(4, 12, seed=seed, scale=scale), normal(4, 12, seed=seed + 1, scale=scale)
    bucketed = kd(student_BC, keep(teacher_BC, k), temperature=temperature).item()
    dense = kd(student_BC, DenseTargets(teacher_BC), temperature=temperature).item()
    assert -1e-5 <= bucketed <= dense * (1 + 1e-4) + 1e-5


def test_kd_is_the_mean_over_rows() -> None:
    student_BC, teacher_BC = normal(2, 6, 5)
    rows = [kd(student_BC[i : i + 1], DenseTargets(teacher_BC[i : i + 1]), temperature=3.0).item() for i in range(6)]
    assert kd(student_BC, DenseTargets(teacher_BC), temperature=3.0).item() == pytest.approx(sum(rows) / 6, rel=1e-6)


def test_kd_stays_finite_where_probabilities_vanish() -> None:
    value = kd(torch.tensor([[1000.0, 0.0]]), DenseTargets(torch.tensor([[0.0, 1000.0]])), temperature=1.0)
    assert value.item() == pytest.approx(1000.0)


def test_the_gradient_of_kd_at_a_high_temperature_is_that_of_matching_centred_logits() -> None:
    student_BC = torch.tensor([[0.3, -0.2, -0.1]], requires_grad=True)
    teacher_BC = torch.tensor([[0.1, 0.4, -0.5]])
    kd(student_BC, DenseTargets(teacher_BC), temperature=1000.0).backward()
    assert student_BC.grad is not None
    # Hinton et al. 2015, section 2.1: (z - v) / N at T = 1 scale, times our T² / T²
    assert torch.allclose(student_BC.grad, (student_BC.detach() - teacher_BC) / 3, atol=1e-3)


def test_the_gradient_of_a_bucket_moves_its_classes_together() -> None:
    student_BC = torch.zeros(1, 4).requires_grad_()
    kd(student_BC, keep(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), 2), temperature=1.0).backward()
    assert student_BC.grad is not None
    # q − p for kept classes; for the others their share of the bucket's, here half each
    assert student_BC.grad[0].tolist() == pytest.approx([0.25 - 0.5, 0.0, (0.5 - 0.25) / 2, (0.5 - 0.25) / 2])
