from __future__ import annotations

import pytest
import torch

from storage.errors import BadRequest
from student_train.losses.on_features.hint import hint
from tests.student_train.losses.toys import compare, feature_loss, normal

PROJECTED = ["hint", "cosine", "vid"]


def test_hint_is_the_mean_squared_difference() -> None:
    assert hint(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).item() == 2.5


@pytest.mark.parametrize("loss", PROJECTED)
@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [
        ((4,), (6,)),
        ((4, 8, 8), (6,)),
        ((5, 4), (6,)),
        ((4, 8, 8), (6, 8, 8)),
        ((4, 8, 8), (6, 4, 4)),
        ((5, 4), (5, 6)),
    ],
)
def test_a_projection_takes_a_layer_to_the_width_of_the_feature(
    loss: str, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    made = feature_loss(loss, student_shape, teacher_shape)
    value = compare(made, normal(3, *student_shape), normal(3, *teacher_shape))
    assert (value.shape, made.projection.weight.shape[0]) == ((), 6)


@pytest.mark.parametrize("loss", PROJECTED)
def test_a_layer_that_no_projection_fits_is_refused(loss: str) -> None:
    with pytest.raises(BadRequest, match="cannot be taught by feature t/feature/f"):
        feature_loss(loss, (4,), (6, 8, 8))


def test_a_projection_can_learn_a_linear_map() -> None:
    made = feature_loss("hint", (4,), (4,), projection=True)
    torch.nn.init.eye_(made.projection.weight)
    torch.nn.init.zeros_(made.projection.bias)
    same = torch.randn(3, 4)
    assert compare(made, same, same).item() == 0
