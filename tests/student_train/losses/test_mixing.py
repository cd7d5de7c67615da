"""Several teachers in one term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from storage.encodings import Capability
from storage.targets.soft import DenseTargets
from student_train.feed.batches import Needs, SoftNeed
from student_train.losses import LOSSES
from student_train.losses.on_targets.soft import choose
from tests.student_train.losses.toys import SOFT, draw, keep, normal, term, value_of

LABELS_B = torch.tensor([0, 1, 2, 3, 4, 5])
A_BC, B_BC, STUDENT_BC = (normal(6, 6, seed=seed, scale=2.0) for seed in range(3))
DENSE = {"a": DenseTargets(A_BC), "b": DenseTargets(B_BC)}
KEPT = {"a": keep(A_BC, 2, LABELS_B), "b": keep(B_BC, 3, LABELS_B)}
BOTH: dict[str, Any] = {"teachers": {"a": 7.0, "b": 3.0}}
LINEAR = {"kd", "marginal_smoothing", "topk_biased", "standardised"}
MIXED = SOFT.keys() - {"dist"}


def gradient(loss: str, targets: Any, **options: Any) -> torch.Tensor:
    student_BC = STUDENT_BC.clone().requires_grad_()
    value_of(loss, student_BC, targets, LABELS_B, **options).backward()
    assert student_BC.grad is not None
    return student_BC.grad


def test_weights_are_shares_of_their_sum() -> None:
    assert term("kd", **BOTH).shares == {"a": 0.7, "b": 0.3}
    assert term("kd", teachers=["a", "b"]).shares == {"a": 0.5, "b": 0.5}


def test_the_gradient_of_a_mixture_is_that_of_the_mean_of_probabilities() -> None:
    mean = DenseTargets((0.7 * A_BC.softmax(1) + 0.3 * B_BC.softmax(1)).log())
    expected = gradient("kd", mean, temperature=1.0)
    torch.testing.assert_close(gradient("kd", DENSE, temperature=1.0, **BOTH), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", sorted(LINEAR))
@pytest.mark.parametrize("targets", [DENSE, KEPT], ids=["dense", "kept"])
def test_a_loss_that_is_linear_in_probabilities_is_the_teachers_own_losses_mixed(loss: str, targets: Any) -> None:
    each = [value_of(loss, STUDENT_BC, targets[name], LABELS_B, **SOFT[loss]) for name in "ab"]
    mixed = value_of(loss, STUDENT_BC, targets, LABELS_B, **BOTH, **SOFT[loss])
    torch.testing.assert_close(mixed, 0.7 * each[0] + 0.3 * each[1])


@pytest.mark.parametrize("loss", ["random_sampling", "stratified"])
def test_draws_of_several_teachers_are_mixed_as_they_are(loss: str) -> None:
    targets = {name: draw(each, 2 * (loss == "stratified"), 4) for name, each in (("a", A_BC), ("b", B_BC))}
    each = [value_of(loss, STUDENT_BC, targets[name], LABELS_B) for name in "ab"]
    torch.testing.assert_close(value_of(loss, STUDENT_BC, targets, LABELS_B, **BOTH), 0.7 * each[0] + 0.3 * each[1])


@pytest.mark.parametrize("loss", sorted(MIXED - LINEAR))
def test_a_mixture_of_sparse_targets_that_keep_every_class_is_worth_that_of_dense_ones(loss: str) -> None:
    kept = {"a": keep(A_BC, 6, LABELS_B), "b": keep(B_BC, 6, LABELS_B, padding=2)}
    torch.testing.assert_close(
        gradient(loss, kept, **BOTH, **SOFT[loss]), gradient(loss, DENSE, **BOTH, **SOFT[loss]), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("loss", sorted(MIXED))
@pytest.mark.parametrize("targets", [DENSE, KEPT], ids=["dense", "kept"])
def test_two_teachers_that_say_the_same_are_worth_one(loss: str, targets: Any) -> None:
    same = {"a": targets["a"], "b": targets["a"]}
    torch.testing.assert_close(
        value_of(loss, STUDENT_BC, same, LABELS_B, **BOTH, **SOFT[loss]),
        value_of(loss, STUDENT_BC, targets["a"], LABELS_B, **SOFT[loss]),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("loss", sorted(MIXED - LINEAR))
def test_a_dense_teacher_and_a_sparse_one_that_say_the_same_are_worth_the_sparse_one(loss: str) -> None:
    same = {"a": DENSE["a"], "b": KEPT["a"]}
    torch.testing.assert_close(
        gradient(loss, same, **BOTH, **SOFT[loss]), gradient(loss, KEPT["a"], **SOFT[loss]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("loss", sorted(MIXED))
@pytest.mark.parametrize("mixing", ["most_confident", "correct"])
@pytest.mark.parametrize(
    "targets", [DENSE, KEPT, {"a": DENSE["a"], "b": KEPT["b"]}], ids=["dense", "kept", "dense and kept"]
)
def test_the_gradient_of_a_choice_is_finite(loss: str, mixing: str, targets: Any) -> None:
    options = SOFT[loss] | {"teachers": ["a", "b"], "mixing": mixing}
    assert torch.isfinite(gradient(loss, targets, **options)).all()


def test_a_mixture_of_dense_teachers_has_correlations() -> None:
    mean = DenseTargets((0.7 * A_BC.softmax(1) + 0.3 * B_BC.softmax(1)).log())
    torch.testing.assert_close(
        value_of("dist", STUDENT_BC, DENSE, LABELS_B, **BOTH), value_of("dist", STUDENT_BC, mean, LABELS_B)
    )


TEACHERS = [
    DenseTargets(torch.tensor([[9.0, 0, 0], [1, 0, 0], [0, 5, 0], [0, 0, 5]])),
    DenseTargets(torch.tensor([[1.0, 0, 0], [0, 0, 9], [0, 2, 0], [0, 0, 2]])),
]
SHARES_BM = torch.tensor([[0.75, 0.25]]).expand(4, 2)


def test_the_most_confident_teacher_has_all_the_weight() -> None:
    weights_BM = choose(TEACHERS, SHARES_BM, "most_confident", None)
    assert weights_BM.tolist() == [[1, 0], [0, 1], [1, 0], [1, 0]]


def test_teachers_that_are_not_correct_have_no_weight_and_all_have_theirs_where_none_is() -> None:
    # rows: both correct; only the second; only the first… and the last is known by none
    labels_B = torch.tensor([0, 2, 1, 0])
    weights_BM = choose(TEACHERS, SHARES_BM, "correct", labels_B)
    assert weights_BM.tolist() == [[0.75, 0.25], [0, 1], [0.75, 0.25], [0.75, 0.25]]


def test_each_rows_choice_is_that_teachers_own_loss() -> None:
    labels_B = torch.tensor([0, 2])
    targets = {name: DenseTargets(each.logits_BC[:2]) for name, each in zip("ab", TEACHERS, strict=True)}
    student_BC = normal(2, 3)
    options = {"teachers": ["a", "b"], "mixing": "most_confident"}
    value = value_of("jsd", student_BC, targets, labels_B, **options)
    rows = [DenseTargets(targets[name].logits_BC[i : i + 1]) for i, name in enumerate("ab")]
    each = [value_of("jsd", student_BC[i : i + 1], row, labels_B[i : i + 1]).item() for i, row in enumerate(rows)]
    assert value.item() == pytest.approx(sum(each) / 2, rel=1e-4)


def test_every_teacher_of_a_mixture_must_serve_it() -> None:
    soft = {SoftNeed(name, Capability("bucket", 4.0)) for name in "ab"}
    assert LOSSES["kd"].needs(term("kd", **BOTH)) == Needs(soft=frozenset(soft))


def test_choosing_needs_each_teachers_likeliest_class_and_of_correct_ones_one_true_label() -> None:
    tops = {SoftNeed(name, Capability("bucket", t)) for name in "ab" for t in (1.0, 4.0)}
    confident = LOSSES["kd"].needs(term("kd", teachers=["a", "b"], mixing="most_confident"))
    correct = LOSSES["kd"].needs(term("kd", mixing="correct", **BOTH))
    assert confident == Needs(soft=frozenset(tops))
    assert correct == Needs(True, frozenset(['kd with mixing = "correct"']), frozenset(tops))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"teacher": "a", "teachers": ["a", "b"]}, "give `teacher"),
        ({"teachers": ["a"]}, "at least 2"),
        ({"teacher": "a", "mixing": "correct"}, "there is one"),
        ({"teachers": {"a": 2.0, "b": 1.0}, "mixing": "most_confident"}, "knows no weights"),
        ({"teachers": {"a": 0.0, "b": 1.0}}, "greater than 0"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        term("kd", **options)


def test_a_term_names_its_teachers_or_one() -> None:
    with pytest.raises(ValidationError, match="give `teacher"):
        term("kd", teacher=None)


def test_names_say_who_teaches_and_how_they_are_chosen() -> None:
    names = [term("kd", **options).name for options in ({}, BOTH, BOTH | {"mixing": "correct"})]
    assert names == ["kd:t", "kd:a+b", "kd:a+b(correct)"]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("dkd", {"alpha": 0.0, "beta": 0.0}),
        ("dist", {"beta": 0.0, "gamma": 0.0}),
        ("rkd", {"feature": "f", "student_layer": "x", "distance": 0.0, "angle": 0.0}),
    ],
)
def test_a_term_of_which_nothing_is_left_is_refused(loss: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="nothing is left"):
        term(loss, **options)
