from __future__ import annotations

import pytest
import torch

from storage.errors import BadRequest
from student_train.losses.on_features.attention import attention, attention_map
from tests.student_train.losses.toys import compare, feature_loss, normal


def test_it_is_the_squared_distance_of_maps_that_have_length_1() -> None:
    # (3, 4)/5 and (1, 0): (0.6 − 1)² + 0.8²
    value = attention(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[7.0, 0.0]]]))
    assert value.item() == pytest.approx(0.16 + 0.64)


def test_an_attention_map_is_the_mean_energy_over_channels() -> None:
    tensor = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])  # (B, D, H, W) = (1, 2, 1, 2)
    assert attention_map(tensor).tolist() == [[[5.0, 2.0]]]


def test_a_stored_map_is_worth_the_tensor_that_it_was_made_of() -> None:
    layer, feature = normal(3, 4, 8, 8), normal(3, 6, 4, 4, seed=1)
    whole = compare(feature_loss("attention", (4, 8, 8), (6, 4, 4)), layer, feature)
    stored = compare(feature_loss("attention", (4, 8, 8), (4, 4)), layer, attention_map(feature))
    torch.testing.assert_close(stored, whole)


def test_the_larger_map_is_pooled_to_the_smaller() -> None:
    small = torch.rand(2, 1, 2, 2)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert compare(feature_loss("attention", (1, 2, 2), (1, 4, 4)), small, large).item() == pytest.approx(0, abs=1e-6)


def test_a_map_of_zeros_has_a_finite_gradient() -> None:
    layer = torch.zeros(2, 3, 4, 4, requires_grad=True)
    compare(feature_loss("attention", (3, 4, 4), (3, 4, 4)), layer, normal(2, 3, 4, 4)).backward()
    assert layer.grad is not None
    assert torch.isfinite(layer.grad).all()


@pytest.mark.parametrize(("student_shape", "teacher_shape"), [((4,), (6, 8, 8)), ((4, 8, 8), (6,))])
def test_what_is_no_map_is_refused(student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
    with pytest.raises(BadRequest, match="cannot be taught by feature t/feature/f") as refusal:
        feature_loss("attention", student_shape, teacher_shape)
    assert refusal.value.do is not None
    assert 'pool = "attention"' in refusal.value.do
