from __future__ import annotations

import torch

from storage.targets.mixture import MixedTargets
from storage.targets.soft import DenseTargets
from student_train.losses.on_targets.logit_mse import logit_mse
from tests.student_train.losses.toys import normal, remedies, sparse, term


def test_it_is_the_squared_distance_summed_over_classes() -> None:
    student_BC, teacher_BC = (
        torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]),
        torch.tensor([[1.0, 0.0, 6.0], [1.0, 0.0, 0.0]]),
    )
    assert logit_mse(student_BC, DenseTargets(teacher_BC)).item() == ((4 + 9) + 1) / 2


def test_of_several_teachers_its_gradient_leads_to_their_mean_logits() -> None:
    a_BC, b_BC = normal(3, 4), normal(3, 4, seed=1)
    mixed = MixedTargets((DenseTargets(a_BC), DenseTargets(b_BC)), torch.tensor([[0.25, 0.75]]).expand(3, 2))
    student_BC = (0.25 * a_BC + 0.75 * b_BC).requires_grad_()
    logit_mse(student_BC, mixed).backward()
    assert student_BC.grad is not None
    torch.testing.assert_close(student_BC.grad, torch.zeros(3, 4), atol=1e-6, rtol=0)


def test_sparse_targets_are_refused() -> None:
    assert remedies(term("logit_mse"), sparse()) == ['encoding = { kind = "dense", dtype = "fp16" }']
