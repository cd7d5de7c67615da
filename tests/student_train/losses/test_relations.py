from __future__ import annotations

from math import log

import pytest
import torch

from student_train.losses import LOSSES
from student_train.losses.on_features.relations import pkt, rkd_angle, rkd_distance, similarity
from tests.student_train.losses.toys import compare, feature_loss, normal, term

COUPLING = ["rkd", "similarity", "pkt", "crd"]


def test_distances_of_pairs_are_compared_over_their_mean() -> None:
    # a line of three rows: student 0, 1, 2 (distances 1, 1, 2 over 4/3), teacher 0, 1, 3 (1, 2, 3 over 2)
    student_BD, teacher_BD = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    differences = (0.75 - 0.5, 0.75 - 1.0, 1.5 - 1.5)
    expected = sum(0.5 * d * d for d in differences) / 3
    assert rkd_distance(student_BD, teacher_BD).item() == pytest.approx(expected)


def test_angles_of_triples_are_compared_by_their_cosines() -> None:
    # a right angle at row 0 with two of 45°, against a straight line with row 0 in the middle
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    line = torch.tensor([[0.0], [-1.0], [1.0]])
    cosines, line_cosines = (0.0, 2**-0.5, 2**-0.5), (-1.0, 1.0, 1.0)
    huber = [0.5 * (a - b) ** 2 for a, b in zip(cosines, line_cosines, strict=True)]  # the first is at the corner, 0.5
    assert rkd_angle(corner, line).item() == pytest.approx(2 * sum(huber) / 27)  # j, k and k, j, of 27 triples


def test_relations_do_not_see_rotation_offset_or_scale() -> None:
    rows_BD = normal(6, 3)
    rotation, _ = torch.linalg.qr(normal(3, 3, seed=1))
    moved_BD = 5 * rows_BD @ rotation + 2
    assert rkd_distance(moved_BD, rows_BD).item() == pytest.approx(0, abs=1e-9)
    assert rkd_angle(moved_BD, rows_BD).item() == pytest.approx(0, abs=1e-9)


def test_similarities_are_compared_row_by_row() -> None:
    # student: rows (1, 0), (0, 1), so G = 1; teacher: rows 1, 1, so G/‖·‖ = 1/√2 everywhere
    value = similarity(torch.eye(2), torch.ones(2, 1))
    assert value.item() == pytest.approx((2 * (1 - 2**-0.5) ** 2 + 2 * 0.5) / 4)


def test_probabilities_of_being_near_leave_out_the_row_itself() -> None:
    # teacher: rows 0°, 60°, 120°, similarities (1 + cos)/2 of 3/4, 1/4 and 3/4; student: three rows that are the same
    teacher_BD = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5], [-0.5, 0.75**0.5]])
    divergence = 0.75 * log(0.75 / 0.5) + 0.25 * log(0.25 / 0.5)
    assert pkt(torch.ones(3, 4), teacher_BD).item() == pytest.approx(2 * divergence / 3, rel=1e-5)


@pytest.mark.parametrize("loss", COUPLING)
def test_it_says_that_it_couples_rows(loss: str) -> None:
    assert LOSSES[loss].couples_rows(term(loss, feature="f", student_layer="x"))


@pytest.mark.parametrize("loss", COUPLING)
@pytest.mark.parametrize("teacher_shape", [(6,), (5, 6), (6, 4, 4)])
def test_a_layer_and_a_feature_of_other_shapes_are_compared(loss: str, teacher_shape: tuple[int, ...]) -> None:
    layer = normal(8, 3, 4, 4).requires_grad_()
    made = feature_loss(loss, (3, 4, 4), teacher_shape)
    compare(made, layer, normal(8, *teacher_shape, seed=1), torch.arange(8) % 3).backward()
    assert layer.grad is not None
    assert torch.isfinite(layer.grad).all()
    assert layer.grad.abs().max() > 0


@pytest.mark.parametrize("loss", COUPLING)
@pytest.mark.parametrize("rows", [1, 4])
def test_rows_that_are_all_the_same_have_a_finite_gradient(loss: str, rows: int) -> None:
    layer = torch.zeros(rows, 3, requires_grad=True)
    value = compare(feature_loss(loss, (3,), (6,)), layer, torch.zeros(rows, 6), torch.arange(rows))
    value.backward()
    assert layer.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(layer.grad).all()


@pytest.mark.parametrize("loss", ["rkd", "similarity", "pkt"])
def test_a_batch_of_one_row_has_no_relations(loss: str) -> None:
    assert compare(feature_loss(loss, (3,), (6,)), normal(1, 3), normal(1, 6)).item() == 0


@pytest.mark.parametrize("loss", COUPLING)
def test_products_of_rows_are_not_autocast(loss: str) -> None:
    made = feature_loss(loss, (6,), (6,))
    for projection in (module for module in made.modules() if isinstance(module, torch.nn.Linear)):
        projection.weight.data = torch.eye(*projection.weight.shape).bfloat16().float()
        torch.nn.init.zeros_(projection.bias)
    layer, feature = normal(8, 6).bfloat16().float(), normal(8, 6, seed=1).bfloat16().float()
    whole = compare(made, layer, feature, torch.arange(8))
    with torch.autocast("cpu", torch.bfloat16):
        half = compare(made, layer, feature, torch.arange(8))
    assert half.item() == pytest.approx(whole.item(), rel=1e-6)


def test_a_part_of_rkd_can_be_switched_off() -> None:
    layer, feature = normal(5, 3), normal(5, 6, seed=1)
    parts = [
        compare(feature_loss("rkd", (3,), (6,), **options), layer, feature).item()
        for options in ({"angle": 0.0}, {"distance": 0.0}, {})
    ]
    assert parts[2] == pytest.approx(parts[0] + parts[1])
    assert parts[0] == pytest.approx(rkd_distance(layer, feature).item())
