from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storage.targets.soft import DenseTargets
from student_train.losses.on_targets.divergences import jsd, reverse_kl, skewed_kl, skewed_reverse_kl, total_variation
from student_train.losses.on_targets.kd import kd
from tests.student_train.losses.toys import keep, normal, remedies, sparse, term

P = torch.tensor([[0.8, 0.2]])
Q = torch.tensor([[0.5, 0.5]])
ALL: dict[str, Callable[..., Tensor]] = {
    "reverse_kl": reverse_kl,
    "jsd": partial(jsd, beta=0.3),
    "skewed_kl": partial(skewed_kl, skew=0.1),
    "skewed_reverse_kl": partial(skewed_reverse_kl, skew=0.1),
    "total_variation": total_variation,
}


def kl(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return sum(x * log(x / y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("reverse_kl", kl((0.5, 0.5), (0.8, 0.2))),
        ("jsd", 0.3 * kl((0.8, 0.2), (0.59, 0.41)) + 0.7 * kl((0.5, 0.5), (0.59, 0.41))),
        ("skewed_kl", kl((0.8, 0.2), (0.53, 0.47))),
        ("skewed_reverse_kl", kl((0.5, 0.5), (0.77, 0.23))),
        ("total_variation", 0.3),
    ],
)
def test_two_classes_worked_by_hand(name: str, expected: float) -> None:
    assert ALL[name](Q.log(), DenseTargets(P.log()), temperature=1.0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_both_sides_are_taken_at_the_temperature(name: str) -> None:
    hot = ALL[name](2 * Q.log(), DenseTargets(2 * P.log()), temperature=2.0)
    assert hot.item() == pytest.approx(ALL[name](Q.log(), DenseTargets(P.log()), temperature=1.0).item(), rel=1e-5)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(ALL)), st.integers(1, 12), st.integers(0, 10_000), st.floats(0.1, 8))
def test_a_bucket_never_makes_a_divergence_larger(name: str, k: int, seed: int, scale: float) -> None:
    teacher_BC, student_BC = normal(4, 12, seed=seed, scale=scale), normal(4, 12, seed=seed + 1, scale=scale)
    bucketed = ALL[name](student_BC, keep(teacher_BC, k), temperature=2.0).item()
    dense = ALL[name](student_BC, DenseTargets(teacher_BC), temperature=2.0).item()
    assert -1e-5 <= bucketed <= dense * (1 + 1e-4) + 1e-5


def test_little_weight_on_the_teacher_makes_a_jsd_of_kl() -> None:
    targets, student_BC = DenseTargets(normal(4, 6)), normal(4, 6, seed=1)
    forward = kd(student_BC, targets, temperature=1.0).item()
    assert jsd(student_BC, targets, temperature=1.0, beta=1e-4).item() / 1e-4 == pytest.approx(forward, rel=1e-2)
    backward = reverse_kl(student_BC, targets, temperature=1.0).item()
    assert jsd(student_BC, targets, temperature=1.0, beta=0.999).item() / 1e-3 == pytest.approx(backward, rel=1e-2)


def test_skew_bounds_what_a_class_that_a_side_never_gives_can_cost() -> None:
    certain, other = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 100.0]])
    assert skewed_kl(certain, DenseTargets(other), temperature=1.0, skew=0.1).item() == pytest.approx(log(10))
    assert skewed_reverse_kl(certain, DenseTargets(other), temperature=1.0, skew=0.1).item() == pytest.approx(log(10))


def test_what_a_bucket_recovers_of_a_reverse_divergence_is_little() -> None:
    # 17 % for the 20 largest of 1,000 random classes
    teacher_BC, student_BC = normal(64, 1000), normal(64, 1000, seed=1)
    kept = reverse_kl(student_BC, keep(teacher_BC, 20), temperature=1.0)
    assert 0.1 < (kept / reverse_kl(student_BC, DenseTargets(teacher_BC), temperature=1.0)).item() < 0.25


def test_a_reverse_divergence_of_sparse_targets_is_refused_unless_a_bucket_is_allowed_by_name() -> None:
    assert remedies(term("reverse_kl"), sparse()) == ['encoding = { kind = "dense", dtype = "fp16" }']
    assert remedies(term("reverse_kl", allow_bucket=True), sparse()) == []
