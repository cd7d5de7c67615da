from __future__ import annotations

from math import log

import pytest
import torch

from storage.targets.soft import DenseTargets
from student_train.losses.on_targets.decoupled import dkd, nkd
from student_train.losses.on_targets.kd import kd
from tests.student_train.losses.toys import keep, normal

P = torch.tensor([[0.5, 0.3, 0.1, 0.1]])
Q = torch.tensor([[0.2, 0.2, 0.3, 0.3]])
LABELS_B = torch.tensor([0])


def test_dkd_is_the_label_against_all_others_and_the_others_among_themselves() -> None:
    value = dkd(Q.log(), DenseTargets(P.log()), labels_B=LABELS_B, temperature=1.0, alpha=2.0, beta=3.0)
    label = 0.5 * log(0.5 / 0.2) + 0.5 * log(0.5 / 0.8)
    others = 0.6 * log(0.6 / 0.25) + 2 * 0.2 * log(0.2 / 0.375)
    assert value.item() == pytest.approx(2 * label + 3 * others, rel=1e-5)


def test_dkd_of_sparse_targets_has_a_bucket_among_the_others() -> None:
    targets = keep(P.log(), 2, LABELS_B)
    value = dkd(Q.log(), targets, labels_B=LABELS_B, temperature=1.0, alpha=2.0, beta=3.0)
    label = 0.5 * log(0.5 / 0.2) + 0.5 * log(0.5 / 0.8)
    others = 0.6 * log(0.6 / 0.25) + 0.4 * log(0.4 / 0.75)
    assert value.item() == pytest.approx(2 * label + 3 * others, rel=1e-5)


def test_dkd_knows_a_label_that_is_not_kept_from_its_stored_probability() -> None:
    label_B = torch.tensor([3])
    value = dkd(Q.log(), keep(P.log(), 2, label_B), labels_B=label_B, temperature=1.0, alpha=0.0, beta=1.0)
    p, q = (0.5 / 0.9, 0.3 / 0.9, 0.1 / 0.9), (0.2 / 0.7, 0.2 / 0.7, 0.3 / 0.7)
    assert value.item() == pytest.approx(sum(a * log(a / b) for a, b in zip(p, q, strict=True)), rel=1e-5)


def test_with_beta_as_what_the_teacher_leaves_the_others_dkd_is_kd() -> None:
    # Zhao et al. 2022, eq. 6: KD = TCKD + (1 − p_t)·NCKD
    targets = DenseTargets(P.log())
    value = dkd(Q.log(), targets, labels_B=LABELS_B, temperature=1.0, alpha=1.0, beta=0.5)
    assert value.item() == pytest.approx(kd(Q.log(), targets, temperature=1.0).item(), rel=1e-5)


def test_nkd_is_the_label_at_temperature_1_and_the_others_at_theirs() -> None:
    p, q = P.square() / P.square().sum(), Q.square() / Q.square().sum()  # at T = 1 of what has roots P and Q at T = 2
    value = nkd(2 * Q.log(), DenseTargets(2 * P.log()), labels_B=LABELS_B, temperature=2.0, gamma=1.5)
    label = -p[0, 0].item() * log(q[0, 0].item())
    others = -(0.6 * log(0.25) + 2 * 0.2 * log(0.375))
    assert value.item() == pytest.approx(label + 1.5 * 4 * others, rel=1e-5)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_bucket_never_makes_dkd_larger(k: int) -> None:
    teacher_BC, student_BC, labels_B = normal(50, 9, scale=2.0), normal(50, 9, seed=1), torch.arange(50) % 9
    options = {"labels_B": labels_B, "temperature": 2.0, "alpha": 1.0, "beta": 8.0}
    kept = dkd(student_BC, keep(teacher_BC, k, labels_B), **options).item()
    assert 0 < kept < dkd(student_BC, DenseTargets(teacher_BC), **options).item()


def test_a_teacher_that_leaves_the_others_nothing_still_has_a_finite_gradient() -> None:
    student_BC = normal(1, 4).requires_grad_()
    for k in (1, 2, 4):
        targets = keep(torch.tensor([[200.0, 0.0, 0.0, 0.0]]), k, LABELS_B)
        dkd(student_BC, targets, labels_B=LABELS_B, temperature=1.0, alpha=1.0, beta=8.0).backward()
        assert student_BC.grad is not None
        assert torch.isfinite(student_BC.grad).all()
