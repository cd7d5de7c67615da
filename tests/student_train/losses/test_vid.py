from __future__ import annotations

from math import log

import pytest
import torch

from student_train.losses.on_features.vid import vid
from tests.student_train.losses.toys import compare, feature_loss, normal


def test_it_is_how_unlikely_a_feature_is_under_a_gaussian() -> None:
    mean, feature, variance_D = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([4.0, 0.25])
    gaussian = torch.distributions.Normal(mean, variance_D.sqrt())
    expected = -gaussian.log_prob(feature).mean().item() - 0.5 * log(2 * torch.pi)
    assert vid(mean, feature, variance_D).item() == pytest.approx(expected)
    assert expected == pytest.approx(0.5 * (0.5 * (4 / 4 + log(4)) + 0.5 * (1 / 0.25 + log(0.25))))


def test_each_channel_of_a_map_has_its_own_variance() -> None:
    mean, feature = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    variance_D = torch.tensor([0.5, 1.0, 2.0])
    each = [vid(mean[:, d : d + 1], feature[:, d : d + 1], variance_D[d : d + 1]).item() for d in range(3)]
    assert vid(mean, feature, variance_D).item() == pytest.approx(sum(each) / 3)


def test_the_variance_is_learned_and_starts_at_5() -> None:
    made = feature_loss("vid", (4,), (6,))
    torch.nn.init.zeros_(made.projection.weight)
    torch.nn.init.zeros_(made.projection.bias)
    value = compare(made, torch.ones(2, 4), torch.zeros(2, 6))
    value.backward()
    assert value.item() == pytest.approx(0.5 * log(5))
    assert (made.scale_D.grad > 0).all()  # a feature that is met exactly wants less variance
