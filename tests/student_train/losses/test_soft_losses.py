"""Facts of all losses on soft targets."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from storage.encodings import DenseEncoding
from storage.targets.soft import DenseTargets
from student_train.losses import LOSSES
from student_train.options.terms import ObjectiveTerm
from tests.student_train.losses.toys import SOFT, keep, normal, remedies, sparse, term, value_of

C = 9
LABELS_B = torch.arange(12) % C
TEACHER_BC = normal(12, C, seed=1, scale=3.0)
STUDENT_BC = normal(12, C, seed=2, scale=2.0)


def test_the_table_holds_exactly_the_losses_that_a_job_may_name() -> None:
    union = get_args(get_args(ObjectiveTerm)[0])
    assert {get_args(each.model_fields["loss"].annotation)[0] for each in union} == LOSSES.keys()


@pytest.mark.parametrize("loss", SOFT)
@pytest.mark.parametrize("padding", [0, 3])
def test_sparse_targets_that_keep_every_class_are_worth_dense_ones(loss: str, padding: int) -> None:
    results = []
    for targets in (DenseTargets(TEACHER_BC), keep(TEACHER_BC, C, LABELS_B, padding=padding)):
        student_BC = STUDENT_BC.clone().requires_grad_()
        value = value_of(loss, student_BC, targets, LABELS_B, **SOFT[loss])
        value.backward()
        results.append((value.detach(), student_BC.grad))
    (dense, dense_gradient), (kept, kept_gradient) = results
    torch.testing.assert_close(kept, dense, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(kept_gradient, dense_gradient, rtol=1e-3, atol=1e-6)


ASSUME = {"marginal_smoothing", "topk_biased", "dist"}  # something about the rest


# nkd is a cross-entropy: its least value is not 0.
@pytest.mark.parametrize(
    ("loss", "k"), [(x, k) for x in SOFT for k in (3, C) if x != "nkd" and (k == C or x not in ASSUME)]
)
def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn(loss: str, k: int) -> None:
    student_BC = (TEACHER_BC + 2).requires_grad_()
    value = value_of(loss, student_BC, keep(TEACHER_BC, k, LABELS_B), LABELS_B, **SOFT[loss])
    value.backward()
    assert student_BC.grad is not None
    assert value.item() == pytest.approx(0, abs=1e-5)
    if loss != "total_variation":  # |p − q| has a corner there
        assert student_BC.grad.abs().max().item() == pytest.approx(0, abs=2e-5)


@pytest.mark.parametrize("loss", [*SOFT, "logit_mse"])
@pytest.mark.parametrize("wanted", ["dense", "sparse"])
@pytest.mark.parametrize(
    "teacher_BC",
    [
        pytest.param(torch.tensor([[0.0, 900.0, 0.0], [0.0, 0.0, 0.0], [5000.0, 0.0, -5000.0]]), id="certain"),
        pytest.param(torch.zeros(2, 1), id="one class"),
        pytest.param(torch.zeros(1, 5), id="one row"),
    ],
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 500.0, 20_000.0])
def test_the_gradient_is_finite(loss: str, wanted: str, teacher_BC: torch.Tensor, scale: float) -> None:
    if (loss, wanted) == ("logit_mse", "sparse"):
        return
    rows, classes = teacher_BC.shape
    labels_B = torch.arange(rows) % classes
    sparse_targets = [keep(teacher_BC, k, labels_B) for k in {1, classes}]
    for targets in [DenseTargets(teacher_BC)] if wanted == "dense" else sparse_targets:
        student_BC = normal(rows, classes, scale=scale).requires_grad_()
        value = value_of(loss, student_BC, targets, labels_B, **SOFT.get(loss, {}))
        value.backward()
        assert student_BC.grad is not None
        assert torch.isfinite(value)
        assert torch.isfinite(student_BC.grad).all()


@pytest.mark.parametrize("loss", [*SOFT, "logit_mse"])
def test_half_precision_logits_are_computed_in_float32(loss: str) -> None:
    student_BC = STUDENT_BC.bfloat16()
    made = [DenseTargets(TEACHER_BC)] + ([keep(TEACHER_BC, 3, LABELS_B)] if loss in SOFT else [])
    for targets in made:
        half = value_of(loss, student_BC, targets, LABELS_B, **SOFT.get(loss, {}))
        assert half == value_of(loss, student_BC.float(), targets, LABELS_B, **SOFT.get(loss, {}))


@pytest.mark.parametrize("loss", sorted(SOFT.keys() - {"dist"}))
def test_it_is_a_mean_over_rows(loss: str) -> None:
    whole = value_of(loss, STUDENT_BC, keep(TEACHER_BC, 4, LABELS_B), LABELS_B, **SOFT[loss]).item()
    parts = [
        value_of(loss, STUDENT_BC[rows], keep(TEACHER_BC[rows], 4, LABELS_B[rows]), LABELS_B[rows], **SOFT[loss])
        for rows in (slice(0, 3), slice(3, 12))
    ]
    assert 0.25 * parts[0].item() + 0.75 * parts[1].item() == pytest.approx(whole, rel=1e-4)
    assert not LOSSES[loss].couples_rows(term(loss, **SOFT[loss]))


@pytest.mark.parametrize("loss", SOFT)
def test_a_temperature_that_was_not_declared_is_refused_with_the_change_that_would_help(loss: str) -> None:
    which = "standardised_temperatures" if loss == "standardised" else "temperatures"
    made = term(loss, **SOFT[loss])
    declared = sparse(temperatures=[1.0, 2.0], standardised_temperatures=[2.0])
    undeclared = sparse(temperatures=[1.0, 4.0], standardised_temperatures=[4.0])
    assert remedies(made, declared) == []
    assert any(which in remedy and "2.0" in remedy for remedy in remedies(made, undeclared))


@pytest.mark.parametrize("loss", SOFT)
def test_draws_alone_do_not_serve_it(loss: str) -> None:
    drawn = sparse(k=0, n=50, temperatures=[2.0], standardised_temperatures=[2.0])
    assert any("k = 64" in remedy for remedy in remedies(term(loss, **SOFT[loss]), drawn))


@pytest.mark.parametrize("loss", [*SOFT, "logit_mse"])
def test_dense_targets_serve_it_at_every_temperature(loss: str) -> None:
    assert remedies(term(loss, **SOFT.get(loss, {})), DenseEncoding()) == []


@pytest.mark.parametrize(
    ("loss", "options"), [("logit_mse", {}), ("reverse_kl", {}), ("dist", {}), ("dist", {"teachers": ["a", "b"]})]
)
def test_what_needs_every_logit_is_refused_of_sparse_targets(loss: str, options: dict[str, object]) -> None:
    assert any('kind = "dense"' in remedy for remedy in remedies(term(loss, **options), sparse()))


@pytest.mark.parametrize("loss", ["dkd", "nkd"])
def test_statistics_that_were_switched_off_are_asked_for(loss: str) -> None:
    assert remedies(term(loss, temperature=1.0), sparse(statistics=False)) == ["encoding.statistics = true"]


@pytest.mark.parametrize(("loss", "expected"), [("dkd", True), ("nkd", True), ("kd", False), ("jsd", False)])
def test_losses_that_want_one_true_class_say_so(loss: str, expected: bool) -> None:
    needs = LOSSES[loss].needs(term(loss))
    assert (needs.labels, needs.one_class) == (expected, frozenset([loss] if expected else []))
