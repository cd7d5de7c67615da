from __future__ import annotations

import pytest
import torch
from torch import nn

from student_train.step import gradient_shares


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor(3.0))]


def test_shares_are_the_norms_of_the_terms_gradients_over_their_sum() -> None:
    trained = weights()
    parts = [3 * trained[0][0] + 4 * trained[1], trained[0].sum() * 15 / 2**0.5]  # gradients of norm 5 and 15
    assert gradient_shares(parts, trained).tolist() == pytest.approx([0.25, 0.75])


def test_a_term_that_moves_nothing_has_no_share() -> None:
    trained = weights()
    assert gradient_shares([trained[0].sum(), torch.tensor(7.0)], trained).tolist() == [1.0, 0.0]


def test_measuring_shares_leaves_no_gradient_behind() -> None:
    trained = weights()
    gradient_shares([trained[0].sum()], trained)
    assert [parameter.grad for parameter in trained] == [None, None]
