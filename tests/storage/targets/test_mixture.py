from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.targets.mixture import MixedTargets
from storage.targets.soft import DenseTargets
from tests.student_train.losses.toys import keep, normal

LABELS_B = torch.tensor([0, 3, 5, 6])
A_BC, B_BC, STUDENT_BC = (normal(4, 7, seed=seed, scale=2.0) for seed in range(3))
EVEN_BM = torch.tensor([[0.7, 0.3]]).expand(4, 2)


def test_of_dense_targets_it_is_the_weighted_mean_of_probabilities_at_the_temperature() -> None:
    mixed = MixedTargets((DenseTargets(A_BC), DenseTargets(B_BC)), EVEN_BM)
    expected = 0.7 * (A_BC / 2).softmax(1) + 0.3 * (B_BC / 2).softmax(1)
    torch.testing.assert_close(mixed.pair(STUDENT_BC, 2.0).log_p.exp(), expected)
    torch.testing.assert_close(mixed.label_log_p(LABELS_B, 2.0).exp(), expected.gather(1, LABELS_B[:, None])[:, 0])


def test_of_sparse_targets_it_is_over_all_classes_that_any_of_them_keeps() -> None:
    # a keeps class 0 of (0.6, 0.2, 0.1, 0.1), b class 1 of (0.1, 0.8, 0.05, 0.05)
    a, b = (keep(torch.tensor([p]).log(), 1) for p in ((0.6, 0.2, 0.1, 0.1), (0.1, 0.8, 0.05, 0.05)))
    mixed = MixedTargets((a, b), torch.tensor([[0.5, 0.5]]))
    log_p, log_q = mixed.pair(torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log(), 1.0)
    a_else, b_else = 0.4 / 3, 0.2 / 3
    expected = [0.3 + b_else / 2, a_else / 2 + 0.4, a_else + b_else]
    assert log_p.exp()[0].tolist() == pytest.approx(expected)
    assert log_q.exp()[0].tolist() == pytest.approx([0.4, 0.3, 0.3])


# a keeps class 0 and gives the others 0.4; of b every class is known, and its likeliest is named beside that.
DENSE_B = DenseTargets(torch.tensor([(0.1, 0.8, 0.07, 0.03)]).log())


def test_beside_a_sparse_teacher_a_dense_one_is_read_and_not_spread() -> None:
    mixed = MixedTargets((keep(torch.tensor([(0.6, 0.2, 0.1, 0.1)]).log(), 1), DENSE_B), torch.tensor([[0.5, 0.5]]))
    log_p, log_q = mixed.pair(torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log(), 1.0)
    named = {0: 0.3 + 0.05, 1: 0.4 / 3 / 2 + 0.4}
    assert log_p.exp()[0, [0, 2, -1]].tolist() == pytest.approx([*named.values(), 0.4 / 3 + 0.05])
    assert log_q.exp()[0, [0, 2, -1]].tolist() == pytest.approx([0.4, 0.3, 0.3])
    assert log_p.exp().sum().item() == pytest.approx(1)


def test_beside_a_dense_teacher_what_a_sparse_one_stored_of_the_label_is_used() -> None:
    sparse = keep(torch.tensor([(0.6, 0.05, 0.05, 0.3)]).log(), 1, torch.tensor([3]))
    mixed = MixedTargets((sparse, DENSE_B), torch.tensor([[0.5, 0.5]]))
    log_p, _ = mixed.others_pair(torch.zeros(1, 4), torch.tensor([3]), 1.0)
    # without the label: (0.6, 0.05, 0.05) and (0.1, 0.8, 0.07), of which the last is the bucket
    others = [each / (0.7 + 0.97) for each in (0.7, 0.85, 0.12)]
    assert sorted(log_p.exp()[0].tolist(), reverse=True)[:3] == pytest.approx(sorted(others, reverse=True))
    assert log_p.exp().sum().item() == pytest.approx(1)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(1, 7), st.floats(0.01, 0.99), st.booleans(), st.booleans())
def test_its_probabilities_sum_to_one(k_a: int, k_b: int, weight: float, with_labels: bool, dense: bool) -> None:
    parts = (keep(A_BC, k_a, LABELS_B, padding=k_b % 3), DenseTargets(B_BC) if dense else keep(B_BC, k_b, LABELS_B))
    mixed = MixedTargets(parts, torch.tensor([[weight, 1 - weight]]).expand(4, 2))
    pair = mixed.others_pair(STUDENT_BC, LABELS_B, 2.0) if with_labels else mixed.pair(STUDENT_BC, 2.0)
    for half in pair:
        assert half.exp().sum(1).tolist() == pytest.approx([1] * 4, rel=1e-4)


@pytest.mark.parametrize("method", ["pair", "others_pair"])
def test_sparse_targets_that_keep_every_class_are_mixed_as_dense_ones(method: str) -> None:
    values = []
    whole = keep(A_BC, 7, LABELS_B, padding=2)
    for parts in (
        (DenseTargets(A_BC), DenseTargets(B_BC)),
        (whole, keep(B_BC, 7, LABELS_B)),
        (whole, DenseTargets(B_BC)),
    ):
        mixed = MixedTargets(parts, EVEN_BM)
        arguments = (STUDENT_BC, LABELS_B, 2.0) if method == "others_pair" else (STUDENT_BC, 2.0)
        log_p, log_q = getattr(mixed, method)(*arguments)
        values.append((log_p.exp() * (log_p - log_q)).sum(1))
    torch.testing.assert_close(values[1:], values[:1] * 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["pair", "others_pair"])
@pytest.mark.parametrize("make", [DenseTargets, lambda logits_BC: keep(logits_BC, 2, LABELS_B)])
def test_a_teacher_without_weight_in_a_row_adds_nothing_to_it(method: str, make: object) -> None:
    weights_BM = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    a, b = make(A_BC), make(B_BC)  # type: ignore[operator]
    arguments = (STUDENT_BC, LABELS_B, 2.0) if method == "others_pair" else (STUDENT_BC, 2.0)

    def divergence(targets: object) -> torch.Tensor:
        log_p, log_q = getattr(targets, method)(*arguments)
        return (log_p.exp() * (log_p - log_q)).sum(1)

    expected = torch.where(weights_BM[:, 0] == 1, divergence(a), divergence(b))
    torch.testing.assert_close(divergence(MixedTargets((a, b), weights_BM)), expected, rtol=1e-4, atol=1e-6)
