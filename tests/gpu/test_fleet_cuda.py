"""Stacked students on a CUDA device: the same students, sooner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from storage.cache import Cache
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.preparing.request import Request
from student_train.running.events import Event, PassStarted, StackingChosen, StackTakenApart
from student_train.running.train import train_students
from tests.student_train.toys import KD, LABELS, Recipe, request_of, student, write_cache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SGD = {"optimizer": "sgd", "learning_rate": 0.05}
RESNET8 = {"architecture": "resnet", "options": {"depth": 8}, "objective": [LABELS, KD]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    recipe = Recipe(rows=2_000, rows_per_shard=500, shape=(3, 32, 32), classes=10, features={})
    return write_cache(tmp_path_factory.mktemp("cuda") / "cache", recipe)


@pytest.fixture(scope="module")
def toy_images(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return write_cache(tmp_path_factory.mktemp("toy") / "cache", Recipe())


def train(
    cache: Cache, runs: Path, students: list[StudentOptions], stacking: str, fill: Path | None = None
) -> list[Event]:
    """Train on the GPU; return what was told. A file `fill` is made where the pass begins, after any trial."""
    request = request_of(cache, runs, *students)
    fleet = FleetOptions.model_validate({"stacking": stacking})
    events: list[Event] = []
    asked = Request(cache, runs, request.data, request.students, "cuda", fleet)

    def report(event: Event) -> None:
        events.append(event)
        if fill is not None and isinstance(event, PassStarted):
            fill.touch()

    summary = train_students(asked, report=report)
    assert summary.exit_code == 0, summary.errors
    return events


def stacked(events: list[Event]) -> list[bool]:
    return [event.stacked for event in events if isinstance(event, StackingChosen)]


@pytest.fixture
def exact() -> Any:
    """Let convolutions have all bits of float32, and one algorithm: what is left is the order of additions."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


@pytest.mark.parametrize(
    "common", [SGD, SGD | {"architecture": "resnet", "options": {"depth": 8, "width": 4}}], ids=["mlp", "resnet"]
)
def test_stacked_students_end_as_alone(toy_images: Cache, tmp_path: Path, exact: None, common: dict[str, Any]) -> None:
    own: list[dict[str, Any]] = [{"seed": 1}, {"learning_rate": 0.02}, {"weight_decay": 0.1}]
    students = [student(f"s{i}", objective=[LABELS, KD], **common | each) for i, each in enumerate(own)]
    assert stacked(train(toy_images, tmp_path / "stacked", students, "always")) == [True]
    for each in students:
        train(toy_images, tmp_path / "alone", [each], "never")
        found, expected = (
            load_file(tmp_path / how / each.name / "student.safetensors") for how in ("stacked", "alone")
        )
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-2, atol=1e-3)


def test_auto_stacks_small_students(images: Cache, tmp_path: Path) -> None:
    students = [student(f"s{seed}", seed=seed, **RESNET8, epochs=1) for seed in range(32)]
    assert stacked(train(images, tmp_path, students, "auto")) == [True]


LARGE = """
import os
import torch


class Large(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = torch.nn.Linear(36, classes)

    def forward(self, inputs):
        if torch._C._functorch.is_batchedtensor(self.layer.weight) and os.path.exists(FULL):
            os.unlink(FULL)
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return self.layer(inputs.flatten(1))


def large(num_classes, input_shape):
    return Large(num_classes)
"""


def test_a_stack_that_a_gpu_refuses_memory_is_halved_and_goes_on(toy_images: Cache, tmp_path: Path) -> None:
    full = tmp_path / "full"
    (tmp_path / "m.py").write_text(LARGE.replace("FULL", repr(str(full))))
    own = {"architecture": f"{tmp_path}/m.py:large", "options": {}, **SGD}
    students = [student(f"s{seed}", seed=seed, **own) for seed in range(4)]
    events = train(toy_images, tmp_path / "runs", students, "always", fill=full)
    assert [event.parts for event in events if isinstance(event, StackTakenApart)] == [2]
    assert not full.exists()
