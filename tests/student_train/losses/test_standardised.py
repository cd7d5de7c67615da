from __future__ import annotations

import pytest
import torch

from storage.targets.soft import DenseTargets
from student_train.losses.on_targets.kd import kd
from student_train.losses.on_targets.standardised import standardised
from tests.student_train.losses.toys import keep, normal, remedies, sparse, term


def test_it_is_kd_of_logits_with_mean_0_and_deviation_1() -> None:
    # (1, 3) is (−1, 1) standardised, and so is (0, 10); (4, 2) is (1, −1)
    student_BC, teacher_BC = torch.tensor([[1.0, 3.0], [1.0, 3.0]]), torch.tensor([[0.0, 10.0], [4.0, 2.0]])
    value = standardised(student_BC, DenseTargets(teacher_BC), temperature=2.0)
    unit = DenseTargets(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))
    expected = kd(torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]), unit, temperature=2.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_may_have_any_scale_and_offset() -> None:
    logits_BC = normal(5, 7)
    assert standardised(0.1 * logits_BC + 3, keep(logits_BC, 3), temperature=1.0).item() == pytest.approx(0, abs=1e-5)


def test_a_bucket_never_makes_it_larger() -> None:
    teacher_BC, student_BC = normal(50, 9, scale=2.0), normal(50, 9, seed=1)
    kept = standardised(student_BC, keep(teacher_BC, 3), temperature=2.0).item()
    assert 0 < kept < standardised(student_BC, DenseTargets(teacher_BC), temperature=2.0).item()


def test_a_student_of_one_logit_for_all_classes_has_a_finite_gradient() -> None:
    student_BC = torch.full((2, 5), 3.0, requires_grad=True)
    standardised(student_BC, keep(normal(2, 5), 2), temperature=1.0).backward()
    assert student_BC.grad is not None
    assert torch.isfinite(student_BC.grad).all()


def test_its_temperature_is_one_of_standardised_logits() -> None:
    assert remedies(term("standardised", temperature=3.0), sparse(temperatures=[3.0])) == [
        "encoding.standardised_temperatures = [3.0]"
    ]
