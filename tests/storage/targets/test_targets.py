from __future__ import annotations

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storage.targets.soft import DenseTargets, SparseTargets, standardise
from storage.targets.support import NEVER, Support, first_of_its_kind, kept_and_rest, log1m_exp
from tests.student_train.losses.toys import TEMPERATURES, keep, normal


def by_autograd(scores_BC: Tensor, ids_BK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the same as `kept_and_rest`, by the textbook, in float64."""
    log_q_BC = (scores_BC.double() / temperature).log_softmax(1)
    outside_BC = torch.ones_like(log_q_BC, dtype=torch.bool).scatter(1, ids_BK, value=False)
    rest = [row[keep].logsumexp(0) for row, keep in zip(log_q_BC, outside_BC, strict=True)]
    return log_q_BC.gather(1, ids_BK), torch.stack(rest)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("padded", [False, True])
def test_classes_and_their_rest_have_the_values_and_gradients_of_the_textbook(
    temperature: float, scale: float, *, padded: bool
) -> None:
    ids_BK = torch.stack([torch.randperm(11, generator=torch.Generator().manual_seed(i))[:4] for i in range(6)])
    ids_BK = ids_BK.sort(1).values
    if padded:
        ids_BK = torch.cat([ids_BK, ids_BK[:, -1:]], 1)
    weights_BK, weights_B = normal(*ids_BK.shape, seed=3), normal(6, seed=4)
    results = []
    for function in (kept_and_rest, by_autograd):
        scores_BC = normal(6, 11, scale=scale).requires_grad_()
        log_q_BK, log_rest_B = function(scores_BC, ids_BK, temperature)
        ((log_q_BK * weights_BK).sum() + (log_rest_B * weights_B).sum()).backward()
        assert scores_BC.grad is not None
        results.append((log_q_BK.float(), log_rest_B.float(), scores_BC.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


def test_more_rows_than_a_block_are_worked_on_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    ids_BK = torch.arange(3).expand(7, 3)
    results = []
    for block in (2**20, 20):  # all rows; two rows
        monkeypatch.setattr("storage.targets.support.BLOCK_ELEMENTS", {"cpu": block})
        scores_BC = normal(7, 10).requires_grad_()
        log_q_BK, log_rest_B = kept_and_rest(scores_BC, ids_BK)
        (log_q_BK.sum() + 2 * log_rest_B.sum()).backward()
        results.append(torch.cat([log_q_BK, log_rest_B[:, None], scores_BC.grad], 1))
    assert torch.equal(*results)


def test_a_rest_that_float32_cannot_subtract_is_exact() -> None:
    _, log_rest_B = kept_and_rest(torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([[0]]))
    assert log_rest_B.item() == pytest.approx(log(2) - 30, rel=1e-6)


def test_gradients_take_the_type_of_the_logits() -> None:
    scores_BC = normal(2, 5).bfloat16().requires_grad_()
    kept_and_rest(scores_BC, torch.tensor([[0], [1]]))[1].sum().backward()
    assert scores_BC.grad is not None
    assert scores_BC.grad.dtype == torch.bfloat16


def test_a_class_that_repeats_the_one_before_it_is_padding() -> None:
    assert first_of_its_kind(torch.tensor([[1, 4, 4, 9, 9]])).tolist() == [[True, True, False, True, False]]


@given(st.floats(-20, -1e-6))
def test_what_is_left_of_a_probability(x: float) -> None:
    expected = torch.log1p(-torch.tensor(x, dtype=torch.float64).exp()).item()
    assert log1m_exp(torch.tensor([x])).item() == pytest.approx(expected, rel=1e-4)


def test_nothing_is_left_of_one() -> None:
    assert log1m_exp(torch.tensor([0.0, 1e-6])).tolist() == [NEVER, NEVER]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.sampled_from(TEMPERATURES), st.integers(0, 99))
def test_both_halves_of_a_pair_are_distributions(k: int, temperature: float, seed: int) -> None:
    pair = keep(normal(5, 8, seed=seed, scale=3.0), k).pair(normal(5, 8, seed=seed + 1), temperature)
    assert [half.exp().sum(1).tolist() for half in pair] == [pytest.approx([1] * 5, rel=1e-4)] * 2


def test_of_classes_that_are_all_kept_no_rounding_is_taken_for_a_rest() -> None:
    rounded = keep(normal(3, 4), 4).log_p_BK - 1e-3
    pair = SparseTargets(4, torch.arange(4).expand(3, 4), rounded).pair(normal(3, 4), 1.0)
    assert pair.log_p[:, -1].tolist() == [NEVER] * 3


@pytest.mark.parametrize("label", [0, 2])  # kept, and not
def test_what_is_left_without_the_label_is_shared_by_the_others(label: int) -> None:
    # p = (1/2, 1/4, 1/8, 1/8); the first two are kept
    targets = keep(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), 2, torch.tensor([label]))
    log_p, log_q = targets.others_pair(torch.zeros(1, 4), torch.tensor([label]), 1.0)
    kept = {0: [0, 0, 0.5, 0.5], 2: [4 / 7, 2 / 7, 0, 1 / 7]}[label]
    shares = {0: [0, 0, 1 / 3, 2 / 3], 2: [1 / 3, 1 / 3, 0, 1 / 3]}[label]
    assert log_p.exp()[0].tolist() == pytest.approx(kept, abs=1e-6)
    assert log_q.exp()[0].tolist() == pytest.approx(shares, abs=1e-6)


def test_what_is_not_stored_shares_its_mass_evenly() -> None:
    p_BC = torch.tensor([[0.5, 0.2, 0.25, 0.05]])
    assert keep(p_BC.log(), 2, padding=1).log_p(1.0).exp()[0].tolist() == pytest.approx([0.5, 0.125, 0.25, 0.125])


def test_the_likeliest_class_is_that_of_dense_targets() -> None:
    logits_BC = normal(20, 7)
    (dense, dense_top), (kept, kept_top) = DenseTargets(logits_BC).top(), keep(logits_BC, 2).top()
    assert torch.allclose(dense, kept)
    assert torch.equal(dense_top, kept_top)


def test_moments_of_sparse_targets_are_those_of_dense_ones_where_all_is_kept() -> None:
    logits_BC, q_BC = normal(6, 5), normal(6, 5, seed=1).softmax(1)
    dense, kept = DenseTargets(logits_BC), keep(logits_BC, 5)
    torch.testing.assert_close(kept.variance(2.0), dense.variance(2.0))
    torch.testing.assert_close(kept.covariance(q_BC, 2.0), dense.covariance(q_BC, 2.0))


def test_covariance_with_an_even_rest() -> None:
    # p̄ = (0.6, 0.2, 0.2), q = (0.5, 0.4, 0.1): Σ p̄q − 1/3
    targets = keep(torch.tensor([[0.6, 0.3, 0.1]]).log(), 1)
    covariance = targets.covariance(torch.tensor([[0.5, 0.4, 0.1]]), 1.0)
    assert covariance.item() == pytest.approx(0.3 + 0.08 + 0.02 - 1 / 3, abs=1e-6)


def test_standardised_logits_have_mean_0_and_deviation_1() -> None:
    unit_BC = standardise(normal(3, 50, scale=7.0) + 4)
    torch.testing.assert_close(unit_BC.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(unit_BC.std(1, correction=0), torch.ones(3))


def test_a_support_says_how_many_it_does_not_name() -> None:
    support = Support(10, torch.tensor([[1, 4, 4]]), torch.tensor([[-1.0, -2.0, NEVER]]), torch.tensor([-0.7]))
    assert support.num_others.tolist() == [8]
