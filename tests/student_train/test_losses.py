from __future__ import annotations

from math import exp, log
from typing import get_args

import pytest
import torch

from storage.encodings.targets import DenseTargets
from storage.errors import BadRequest
from student_train.losses import LOSSES
from student_train.losses.hint import HintLoss, hint
from student_train.losses.kd import kd
from student_train.losses.labels import labels_cross_entropy
from student_train.needs import ArrayKey, Outputs, Shapes, Supervision
from student_train.terms import HintTerm, ObjectiveTerm


def test_the_table_holds_exactly_the_losses_that_a_job_may_name() -> None:
    union = get_args(get_args(ObjectiveTerm)[0])
    assert {get_args(term.model_fields["loss"].annotation)[0] for term in union} == LOSSES.keys()


def test_labels_is_minus_the_log_probability_of_the_label() -> None:
    loss = labels_cross_entropy(torch.tensor([[0.0, log(3.0)], [0.0, 0.0]]), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((log(4 / 3) + log(2)) / 2)


def test_smoothing_spreads_its_share_evenly() -> None:
    loss = labels_cross_entropy(torch.tensor([[0.0, log(3.0)]]), torch.tensor([1]), smoothing=0.2)
    assert loss.item() == pytest.approx(-0.9 * log(3 / 4) - 0.1 * log(1 / 4))


def test_kd_is_the_divergence_at_the_temperature_times_its_square() -> None:
    # T = 2: teacher (0, 2 log 3) has p = (1/4, 3/4), student (0, 0) has q = (1/2, 1/2)
    value = kd(torch.zeros(1, 2), DenseTargets(torch.tensor([[0.0, 2 * log(3.0)]])), temperature=2.0)
    assert value.item() == pytest.approx(4 * (0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5)))


def test_kd_of_a_student_that_equals_its_teacher_is_zero() -> None:
    logits_BC = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    assert kd(logits_BC, DenseTargets(logits_BC + 3), temperature=4.0).item() == pytest.approx(0, abs=1e-6)


def test_kd_is_the_mean_over_rows() -> None:
    student_BC, teacher_BC = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    rows = [kd(student_BC[i : i + 1], DenseTargets(teacher_BC[i : i + 1]), temperature=3.0).item() for i in range(6)]
    assert kd(student_BC, DenseTargets(teacher_BC), temperature=3.0).item() == pytest.approx(sum(rows) / 6, rel=1e-6)


def test_kd_of_half_precision_logits_is_computed_in_float32() -> None:
    student_BC, teacher_BC = (100 * torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))).bfloat16()
    assert kd(student_BC, DenseTargets(teacher_BC), temperature=1.0) == kd(
        student_BC.float(), DenseTargets(teacher_BC.float()), temperature=1.0
    )


def test_kd_stays_finite_where_probabilities_vanish() -> None:
    value = kd(torch.tensor([[1000.0, 0.0]]), DenseTargets(torch.tensor([[0.0, 1000.0]])), temperature=1.0)
    assert value.item() == pytest.approx(1000.0)


def test_the_gradient_of_kd_at_a_high_temperature_is_that_of_matching_centred_logits() -> None:
    student_BC = torch.tensor([[0.3, -0.2, -0.1]], requires_grad=True)
    teacher_BC = torch.tensor([[0.1, 0.4, -0.5]])
    kd(student_BC, DenseTargets(teacher_BC), temperature=1000.0).backward()
    assert student_BC.grad is not None
    # Hinton et al. 2015, section 2.1: (z - v) / N at T = 1 scale, times our T² / T²
    assert torch.allclose(student_BC.grad, (student_BC.detach() - teacher_BC) / 3, atol=1e-3)


def test_hint_is_the_mean_squared_difference() -> None:
    assert hint(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).item() == 2.5


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
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    loss, key = hint_loss(student_shape, teacher_shape)
    layer, feature = torch.randn(3, *student_shape), torch.randn(3, *teacher_shape)
    value = loss(Outputs(torch.zeros(3, 2), {"x": layer}), Supervision(features={key: feature}))
    assert (value.shape, loss.projection.weight.shape[0]) == ((), 6)


def test_a_layer_that_no_projection_fits_is_refused() -> None:
    with pytest.raises(BadRequest, match="cannot be taught by feature t/feature/f"):
        hint_loss((4,), (6, 8, 8))


def test_a_projection_can_learn_a_linear_map() -> None:
    loss, key = hint_loss((4,), (4,))
    torch.nn.init.eye_(loss.projection.weight)
    torch.nn.init.zeros_(loss.projection.bias)
    same = torch.randn(3, 4)
    assert loss(Outputs(same, {"x": same}), Supervision(features={key: same})).item() == 0


def test_terms_agree_with_a_worked_example_in_nats() -> None:
    loss = labels_cross_entropy(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(log(1 + exp(-1)))


def hint_loss(student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> tuple[HintLoss, ArrayKey]:
    key = ArrayKey("t", "feature/f")
    term = HintTerm(loss="hint", teacher="t", feature="f", student_layer="x")
    return HintLoss(term, Shapes({"x": student_shape}, {key: teacher_shape})), key
