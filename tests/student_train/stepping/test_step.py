from __future__ import annotations

import pytest
import torch
from torch import nn

from student_train.stepping.gradients.rows import accumulate_by_term


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor(3.0))]


def test_shares_are_the_norms_of_the_terms_gradients_over_their_sum() -> None:
    trained = weights()
    parts = [3 * trained[0][0] + 4 * trained[1], trained[0].sum() * 15 / 2**0.5]  # gradients of norm 5 and 15
    assert accumulate_by_term(parts, trained, of_student=2).tolist() == pytest.approx([0.25, 0.75])


def test_a_term_that_moves_nothing_has_no_share() -> None:
    trained = weights()
    assert accumulate_by_term([trained[0].sum(), torch.tensor(7.0)], trained, of_student=2).tolist() == [1.0, 0.0]


def test_the_gradients_of_all_terms_are_added_up() -> None:
    one, other = weights(), weights()
    one[1].grad = other[1].grad = torch.tensor(10.0)

    def parts(trained: list[nn.Parameter]) -> list[torch.Tensor]:
        return [3 * trained[0][0] + 4 * trained[1], trained[0].sum() * 15]

    accumulate_by_term(parts(one), one, of_student=2)
    sum(parts(other), torch.tensor(0.0)).backward()
    assert [p.grad.tolist() for p in one] == [p.grad.tolist() for p in other]  # type: ignore[union-attr]


def test_what_a_terms_own_projection_learns_is_no_share_of_the_students() -> None:
    trained = weights()  # the second stands for a projection
    parts = [trained[0].sum(), 100 * trained[1]]
    assert accumulate_by_term(parts, trained, of_student=1).tolist() == [1.0, 0.0]
    assert trained[1].grad == 100
