from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from student_train.losses.on_features.cosine import cosine
from tests.student_train.losses.toys import normal


def test_it_is_one_less_the_cosine() -> None:
    value = cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [3.0, 3.0]]))
    assert value.item() == pytest.approx((1 + 0) / 2)


def test_it_is_half_the_squared_distance_of_what_has_length_1() -> None:
    a_BD, b_BD = normal(5, 4), normal(5, 4, seed=1)
    distance = (functional.normalize(a_BD) - functional.normalize(b_BD)).square().sum(1).mean()
    torch.testing.assert_close(cosine(a_BD, b_BD), distance / 2)


@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (3, 2, 4)])
def test_maps_and_sequences_are_compared_position_by_position(shape: tuple[int, ...]) -> None:
    a, b = normal(*shape), normal(*shape, seed=1)
    channels = 1 if len(shape) == 4 else 2
    a_ND, b_ND = (each.movedim(channels, -1).reshape(-1, 4) for each in (a, b))
    torch.testing.assert_close(cosine(a, b), cosine(a_ND, b_ND))
