"""Sampled targets: the mean gradient over draws meets the dense one; that of a renormalised top-k does not."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import pytest
import torch
from torch import Tensor

from storage.encodings import DenseEncoding
from storage.targets.soft import DenseTargets, SoftTargets, SparseTargets
from student_train.losses.on_targets.approximate import topk_biased
from student_train.losses.on_targets.kd import kd
from student_train.losses.on_targets.sampled import random_sampling, stratified
from tests.student_train.losses.toys import draw, keep, normal, remedies, sparse, term

NONE_BK = torch.empty(1, 0)
C, DRAWS, TIMES = 200, 12, 5000  # so many classes that draws go by groups of them


def test_random_sampling_is_the_mean_over_draws() -> None:
    # class 2 was drawn three times, class 0 once
    draws = SparseTargets(3, NONE_BK.long(), NONE_BK, torch.tensor([[0, 2, 2]]), torch.tensor([[1.0, 3.0, 0.0]]))
    value = random_sampling(torch.tensor([[0.5, 0.3, 0.2]]).log(), draws)
    assert value.item() == pytest.approx(-0.25 * log(0.5) - 0.75 * log(0.2))


def test_stratified_is_exact_for_kept_classes_and_gives_draws_the_rest() -> None:
    # p(1) = 0.6 is kept; of the rest, class 0 was drawn once and class 3 three times
    kept = torch.tensor([[1]]), torch.tensor([[log(0.6)]])
    targets = SparseTargets(4, *kept, torch.tensor([[0, 3]]), torch.tensor([[1.0, 3.0]]))
    value = stratified(torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log(), targets)
    assert value.item() == pytest.approx(-0.6 * log(0.3) - 0.4 * (0.25 * log(0.4) + 0.75 * log(0.1)))


def test_without_a_rest_stratified_is_cross_entropy() -> None:
    logits_BC, student_BC = normal(5, 6), normal(5, 6, seed=1)
    kept = keep(logits_BC, 6)
    nothing = torch.zeros(5, 1)
    targets = SparseTargets(6, kept.ids_BK, kept.log_p_BK, nothing.long(), nothing, kept.statistics)
    expected = -(logits_BC.softmax(1) * student_BC.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(stratified(student_BC, targets), expected)


@pytest.mark.parametrize(("loss", "k"), [(random_sampling, 0), (stratified, 4)])
def test_less_the_entropy_it_estimates_the_divergence(loss: Callable[..., Tensor], k: int) -> None:
    teacher_BC, student_BC = normal(1, C, scale=2.0).expand(4000, C), normal(1, C, seed=1).expand(4000, C)
    targets = draw(teacher_BC, k, DRAWS)
    expected = kd(student_BC[:1], DenseTargets(teacher_BC[:1]), temperature=1.0).item()
    assert loss(student_BC, targets, less_entropy=True).item() == pytest.approx(expected, rel=0.05)


def gradients(loss: Callable[[Tensor, SoftTargets], Tensor], targets: SoftTargets, rows: int) -> Tensor:
    """Return the gradient of each of some rows' own loss, for one and the same student, (rows, C)."""
    student_BC = normal(1, C, seed=5).repeat(rows, 1).requires_grad_()
    (loss(student_BC, targets) * rows).backward()
    assert student_BC.grad is not None
    return student_BC.grad


@pytest.mark.parametrize(("loss", "k"), [(random_sampling, 0), (stratified, 4)])
def test_its_mean_gradient_over_draws_is_the_dense_one(loss: Callable[..., Tensor], k: int) -> None:
    teacher_BC = normal(1, C, seed=6, scale=3.0)
    (dense_C,) = gradients(lambda s, t: kd(s, t, temperature=1.0), DenseTargets(teacher_BC), 1)
    gradients_RC = gradients(loss, draw(teacher_BC.expand(TIMES, C), k, DRAWS), TIMES)
    error_C = gradients_RC.std(0) / TIMES**0.5
    off_C = (gradients_RC.mean(0) - dense_C).abs()
    drawn_C = error_C > 1e-5
    # 1 is expected; over some 150 classes, 1.3 would be a chance of one in 10⁶ or so
    assert (off_C / error_C)[drawn_C].square().mean().sqrt() < 1.3
    assert (off_C[~drawn_C] < 2e-4).all()  # kept in float16, or too rare to have been drawn once
    assert drawn_C.sum() > 140


def test_the_gradient_of_a_renormalised_top_k_is_not_the_dense_one() -> None:
    teacher_BC = normal(1, C, seed=6, scale=3.0)
    targets = draw(teacher_BC.expand(TIMES, C), 0, DRAWS)
    (dense_C,) = gradients(lambda s, t: kd(s, t, temperature=1.0), DenseTargets(teacher_BC), 1)
    (biased_C,) = gradients(lambda s, t: topk_biased(s, t, temperature=1.0), keep(teacher_BC, DRAWS), 1)
    error_C = gradients(random_sampling, targets, TIMES).std(0) / TIMES**0.5
    off = ((biased_C - dense_C) / error_C.clamp(min=1e-7)).square().mean().sqrt()
    assert off > 5  # of the standard errors that sampling has with as many classes stored


def test_stratified_draws_vary_less_than_draws_from_all_classes() -> None:
    teacher_BC = normal(1, C, seed=6, scale=3.0).expand(TIMES, C)
    from_all = gradients(random_sampling, draw(teacher_BC, 0, DRAWS), TIMES)
    from_rest = gradients(stratified, draw(teacher_BC, 4, DRAWS - 4), TIMES)
    assert from_rest.var(0).sum() < 0.5 * from_all.var(0).sum()


@pytest.mark.parametrize(
    ("loss", "helps"),
    [("random_sampling", 'kind = "sparse", n = 50'), ("stratified", 'kind = "sparse", k = 16, n = 50')],
)
@pytest.mark.parametrize("encoding", [DenseEncoding(), sparse(k=4)], ids=["dense", "kept alone"])
def test_draws_that_were_not_made_are_refused(loss: str, helps: str, encoding: DenseEncoding) -> None:
    (remedy,) = remedies(term(loss), encoding)
    assert helps in remedy


def test_draws_from_the_rest_alone_are_not_draws_from_all_classes() -> None:
    assert len(remedies(term("random_sampling"), sparse(k=4, n=9))) == 1
    assert len(remedies(term("stratified"), sparse(k=0, n=9))) == 1


def test_the_entropy_is_asked_for_where_it_is_taken_off() -> None:
    made = term("random_sampling", less_entropy=True)
    assert remedies(made, sparse(k=0, n=9, statistics=False)) == ["encoding.statistics = true"]
    assert remedies(term("random_sampling"), sparse(k=0, n=9, statistics=False)) == []


def test_real_draws_of_an_encoding_are_decoded_for_it() -> None:
    logits_BC = normal(6, C, scale=2.0)
    for k, loss in ((0, random_sampling), (4, stratified)):
        encoding = sparse(k=k, n=200)
        arrays = encoding.encode(
            logits_BC, num_classes=C, labels_B=torch.zeros(6, dtype=torch.int64), keys_B=torch.arange(6)
        )
        value = loss(logits_BC, encoding.decode(arrays, C), less_entropy=True)
        assert value.item() == pytest.approx(0, abs=0.2)
