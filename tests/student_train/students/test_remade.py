"""Layers that a blueprint says are other than their architecture builds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from storage.errors import BadRequest
from student_train.stepping.average import WeightAverage
from student_train.students import Blueprint, Change, Dropped, Factored, Int8, Resized, build_student, settled
from student_train.students.remade.int8 import LARGEST, Rounded, codes_of, step_of
from student_train.students.remade.rebuild import rebuild


def blueprint(*changes: Change, **options: Any) -> Blueprint:
    return Blueprint(
        architecture="resnet",
        options={"depth": 14, "width": 4} | options,
        num_classes=3,
        input_shape=(1, 8, 8),
        mean=(0.5,),
        std=(0.5,),
        changes=changes,
    )


def test_a_blueprint_without_changes_is_written_as_before() -> None:
    assert not {"changes", "teacher_code"} & blueprint().model_dump().keys()


def test_changes_are_data_and_come_back() -> None:
    changes = (
        Resized(layer="stage1.0.convolution1", shape=(2, 4, 3, 3)),
        Dropped(layer="stage1.1"),
        Factored(layer="stage2.0.convolution1", rank=3),
        Int8(layer="head", per="tensor"),
    )
    there = blueprint(*changes)
    assert Blueprint.model_validate_json(there.model_dump_json()) == there


def test_a_block_that_is_left_out_hands_on_what_it_is_given() -> None:
    student = build_student(blueprint(Dropped(layer="stage1.1"))).eval()
    rows = torch.rand(2, 4, 8, 8)
    assert student.network.stage1[1](rows) is rows
    assert "network.stage1.1.convolution1.weight" not in student.state_dict()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (Resized(layer="stage1.0.convolution1", shape=(400, 4, 3, 3)), r"Conv2d of \(4, 4, 3, 3\)"),
        (Resized(layer="nowhere", shape=(4,)), "no layer of"),
        (Resized(layer="stage1", shape=(4,)), "Sequential"),
        (Factored(layer="stage1.0.norm1", rank=1), "BatchNorm2d"),
        (Factored(layer="head", rank=99), "rank 3"),
        (Int8(layer="stem"), "Sequential"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(change: Change, found: str) -> None:
    with pytest.raises(BadRequest, match=f"layer {change.layer} cannot be {change.kind}") as caught:
        build_student(blueprint(change))
    assert caught.value.found is not None
    import re

    assert re.search(found, caught.value.found)


class Encoding(nn.Module):
    """Torch's own layer, which in inference reads the weights of its layers and does not call them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, rows_BLD: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.layer(rows_BLD)
        return rows


@pytest.mark.parametrize("trained", [True, False])
def test_layers_within_an_encoder_of_torch_round_in_inference_too(trained: bool) -> None:
    torch.manual_seed(0)
    rows_BLD = torch.randn(4, 3, 8)
    network = rebuild(Encoding(), [Int8(layer="layer.linear1", trained=trained)])
    network.train()(rows_BLD)
    with torch.inference_mode():
        said = network.eval()(rows_BLD)
    network.layer.linear1.register_forward_hook(lambda *_: None)  # with which torch calls its layers
    with torch.no_grad():
        assert torch.equal(said, network(rows_BLD))


def test_an_average_of_weights_has_a_range_of_inputs_too() -> None:
    student = build_student(blueprint(Int8(layer="head", trained=True)))
    average = WeightAverage(student, 0.9)
    for step in range(3):
        student.train()(torch.rand(2, 1, 8, 8))
        average.update(step)
    said = settled(average.student)
    assert said.network.head.high > said.network.head.low
    assert said(torch.rand(2, 1, 8, 8)).isfinite().all()


def test_codes_are_rounded_weights_by_hand() -> None:
    weight = torch.tensor([[1.27, -0.634, 0.0], [0.0127, 0.0, -0.0001]])
    step = step_of(weight, "channel")
    torch.testing.assert_close(step, torch.tensor([[0.01], [0.0001]]))
    assert codes_of(weight, step).tolist() == [[127, -63, 0], [127, 0, -1]]
    assert codes_of(weight, step_of(weight, "tensor")).tolist() == [[127, -63, 0], [1, 0, 0]]


def test_a_layer_in_training_becomes_one_of_codes_that_says_the_same() -> None:
    torch.manual_seed(0)
    names = ("stem.0", "stage1.0.convolution1", "head")
    student = build_student(blueprint(*(Int8(layer=name, trained=True) for name in names), depth=8))
    rows = torch.rand(16, 1, 8, 8)
    for _ in range(3):
        student(rows).sum().backward()
    weight = student.network.stem[0].weight
    assert bool((weight.grad != 0).all())  # straight through the rounding
    plain = settled(student.eval())
    torch.testing.assert_close(plain(rows), student(rows), rtol=1e-5, atol=1e-5)
    assert all(not change.trained for change in plain.blueprint.changes)
    # what is written is what is read
    again = build_student(plain.blueprint).eval()
    again.load_state_dict(plain.state_dict())
    assert torch.equal(again(rows), plain(rows))
    assert int(plain.network.head.codes.abs().max()) == LARGEST


def test_inputs_are_rounded_within_the_range_that_training_saw() -> None:
    layer = Rounded(nn.Linear(1, 1, bias=False), "channel")
    with torch.no_grad():
        layer.weight.fill_(1.0)
    layer.train()
    layer(torch.tensor([[-1.0], [1.55]]))
    layer.eval()
    assert (float(layer.low), round(float(layer.high), 6)) == (-1.0, 1.55)
    # steps of 0.01, of which 0 is one; what is outside is cut
    found = layer(torch.tensor([[0.0], [0.014], [0.016], [9.0], [-9.0]])).flatten().tolist()
    assert found == pytest.approx([0.0, 0.01, 0.02, 1.55, -1.0], abs=1e-6)
