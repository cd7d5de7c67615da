"""A student of somebody's own code: it runs where it is named, and what cannot be traced is told with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.errors import BadRequest
from student_train.students import Blueprint, build_student, save_student
from student_train.using.exporting.written import write_onnx, write_pt2
from tests.conftest import Program

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(12, num_classes)

    def forward(self, x):
        x = x.flatten(1)
        if x.sum() > 0:
            x = x * 2
        return self.head(x)

def build(num_classes, input_shape):
    return Net(num_classes)
"""


def blueprint_of(tmp_path: Path) -> Blueprint:
    (tmp_path / "net.py").write_text(NET)
    return Blueprint(
        architecture=f"{tmp_path}/net.py:build", num_classes=2, input_shape=(3, 2, 2), mean=(0.5,), std=(0.5,)
    )


def test_its_code_runs_only_where_it_is_named(program: Program, tmp_path: Path) -> None:
    blueprint = blueprint_of(tmp_path)
    save_student(tmp_path / "s", blueprint, build_student(blueprint).state_dict())
    refused = json.loads(program("student", "predict", tmp_path / "s", "x.npy", "--json").out)
    assert refused["do"] == f"--architecture {tmp_path}/net.py:build    # if you trust that code"
    named = program("student", "predict", tmp_path / "s", "x.npy", "--architecture", f"{tmp_path}/net.py:build")
    assert "there is no x.npy" in named.err


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_onnx, write_pt2])
def test_what_cannot_be_traced_is_told_with_its_line_and_what_to_do(tmp_path: Path, write) -> None:
    student = build_student(blueprint_of(tmp_path)).eval()
    with pytest.raises(BadRequest, match="cannot be followed by") as refused:
        write(student, tmp_path, {})
    assert "net.py, line 11: if x.sum() > 0:" in str(refused.value.found)
    assert "torch.where in place of `if` over values" in str(refused.value.do)
