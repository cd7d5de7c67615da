from __future__ import annotations

from math import log

import pytest
import torch

from storage.targets.soft import DenseTargets
from student_train.losses.on_targets.approximate import marginal_smoothing, topk_biased
from student_train.losses.on_targets.kd import kd
from tests.student_train.losses.toys import keep, normal

P = torch.tensor([[0.5, 0.25, 0.2, 0.05]])
Q = torch.tensor([[0.4, 0.3, 0.1, 0.2]])


def test_marginal_smoothing_gives_each_other_class_the_same_share_of_the_rest() -> None:
    value = marginal_smoothing(Q.log(), keep(P.log(), 2), temperature=1.0)
    expected = 0.5 * log(0.5 / 0.4) + 0.25 * log(0.25 / 0.3) + 0.125 * log(0.125 / 0.1) + 0.125 * log(0.125 / 0.2)
    assert value.item() == pytest.approx(expected)


def test_a_renormalised_top_k_takes_the_kept_classes_for_all() -> None:
    value = topk_biased(Q.log(), keep(P.log(), 2), temperature=1.0)
    assert value.item() == pytest.approx(2 / 3 * log(2 / 3 / 0.4) + 1 / 3 * log(1 / 3 / 0.3))


@pytest.mark.parametrize("loss", [marginal_smoothing, topk_biased])
def test_of_dense_targets_it_is_kd(loss: object) -> None:
    targets, student_BC = DenseTargets(normal(5, 6)), normal(5, 6, seed=1)
    torch.testing.assert_close(
        loss(student_BC, targets, temperature=2.0),  # type: ignore[operator]
        kd(student_BC, targets, temperature=2.0),
    )


def test_a_renormalised_top_k_would_rather_have_a_student_that_is_too_sure() -> None:
    sure = torch.tensor([[2 / 3, 1 / 3, 1e-6, 1e-6]]).log()
    targets = keep(P.log(), 2)
    assert topk_biased(sure, targets, temperature=1.0) < topk_biased(P.log(), targets, temperature=1.0)
    assert kd(sure, targets, temperature=1.0) > kd(P.log(), targets, temperature=1.0)


def test_a_divergence_on_probabilities_that_do_not_sum_to_one_can_be_negative() -> None:
    log_p, log_q = (half[:, :-1] for half in keep(P.log(), 2).pair(torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log(), 1.0))
    assert (log_p.exp() * (log_p - log_q)).sum().item() < 0


def test_kept_classes_that_are_scaled_up_have_no_negative_divergence() -> None:
    values = [
        topk_biased(normal(1, 9, seed=2 * seed), keep(normal(1, 9, seed=2 * seed + 1), 3), temperature=1.0).item()
        for seed in range(50)
    ]
    assert min(values) > 0
