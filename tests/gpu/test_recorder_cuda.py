"""Steps as CUDA graphs: the same students, sooner; and what cannot be recorded, and what that does to others."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from storage.cache import Cache
from storage.encodings import SparseEncoding
from storage.errors import Interrupted
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.running.events import Event, MemoryProjected, StackingChosen, StepsNotRecorded
from student_train.running.train import Summary, train_students
from student_train.stepping.recorder import Recording
from tests.student_train.toys import HINT, KD, LABELS, Recipe, request_of, student, write_cache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SGD = {"optimizer": "sgd", "learning_rate": 0.02}
RESNET = {"architecture": "resnet", "options": {"depth": 8, "width": 4}}
DROPOUT = {"architecture": "cnn", "options": {"widths": [8, 8], "dropout": 0.3}}
FEATURES: list[dict[str, Any]] = [
    LABELS,
    {"loss": "dist", "teacher": "sage"},
    HINT,
    {"loss": "crd", "teacher": "sage", "feature": "pooled", "student_layer": "network.hidden1"},
    {"loss": "rkd", "teacher": "sage", "feature": "pooled", "student_layer": "network.hidden1"},
]
STUDENTS: dict[str, dict[str, Any]] = {
    "adamw": {"objective": [LABELS, KD]},
    "sgd": SGD | RESNET | {"objective": [LABELS, KD]},
    "clipped and averaged": {"objective": [LABELS, KD], "clip_norm": 0.5, "ema_decay": 0.9, "weight_decay": 0.1},
    "dropout": DROPOUT | {"objective": [LABELS, KD]},
    "features": {"objective": FEATURES},
    "bf16": RESNET | {"objective": [LABELS, KD], "autocast": "bf16"},
    "plain sgd": SGD | {"momentum": 0.0, "objective": [KD]},
}


@pytest.fixture(autouse=True)
def _one_algorithm() -> Any:
    """Let kernels add up in one order, so that nothing but the recording can make a difference."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each replayed step adds who took it: "Alone" or "Stack"."""
    told: list[str] = []
    record, replay = Recording.__init__, Recording.replay
    takers: dict[int, str] = {}

    def recording(self: Recording, kind: Any, take: Any, *others: Any) -> None:
        record(self, kind, take, *others)
        takers[id(self)] = type(take.__self__).__name__

    def replaying(self: Recording, batches: Any) -> Any:
        told.append(takers[id(self)])
        return replay(self, batches)

    monkeypatch.setattr(Recording, "__init__", recording)
    monkeypatch.setattr(Recording, "replay", replaying)
    return told


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return write_cache(
        tmp_path_factory.mktemp("toy") / "cache", Recipe(rows=500)
    )  # 400 to learn from: 13 steps, the last a small one


def train(
    cache: Cache,
    runs: Path,
    *students: StudentOptions,
    stacking: str = "never",
    cuda_graphs: str = "auto",
    **keywords: Any,
) -> Summary:
    fleet = FleetOptions.model_validate({"stacking": stacking, "cuda_graphs": cuda_graphs})
    asked = replace(request_of(cache, runs, *students), device="cuda", fleet=fleet)
    return train_students(asked, **keywords)


def weights(runs: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(runs / name / "student.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("own", STUDENTS.values(), ids=STUDENTS)
def test_a_recorded_student_ends_where_it_would_have(
    toys: Cache, tmp_path: Path, replays: list[str], own: dict[str, Any]
) -> None:
    for graphs in ("never", "auto"):
        summary = train(toys, tmp_path / graphs, student("s", **own), cuda_graphs=graphs)
        assert summary.exit_code == 0, summary.errors
        assert bool(replays) == (graphs == "auto")
    assert len(replays) == 3 * 11 - 2  # all but each epoch's first and last step, and two that go before
    # A recorded step's learning rate is of 24 bits, which the 8 of bf16 make more of.
    assert_same(
        weights(tmp_path / "auto", "s"), weights(tmp_path / "never", "s"), atol=0.02 if "autocast" in own else 1e-5
    )


def test_sparse_targets_are_decoded_in_a_recording(tmp_path: Path, replays: list[str]) -> None:
    encoding = SparseEncoding.model_validate({"k": 2, "values": "8bit", "temperatures": [1.0, 2.0]})
    cache = write_cache(tmp_path / "cache", Recipe(rows=500, encoding=encoding, features={}))
    for graphs in ("never", "auto"):
        assert train(cache, tmp_path / graphs, student("s", objective=[KD]), cuda_graphs=graphs).exit_code == 0
    assert replays
    assert_same(weights(tmp_path / "auto", "s"), weights(tmp_path / "never", "s"))


@pytest.mark.parametrize(
    "common", [SGD, {"ema_decay": 0.9, "clip_norm": 0.5}, SGD | RESNET], ids=["sgd", "adamw", "bn"]
)
def test_a_recorded_stack_ends_where_it_would_have(
    toys: Cache, tmp_path: Path, replays: list[str], common: dict[str, Any]
) -> None:
    own: list[dict[str, Any]] = [{"seed": 1}, {"learning_rate": 0.003}, {"weight_decay": 0.1}]
    students = [student(f"s{i}", **{"objective": [LABELS, KD]} | common | each) for i, each in enumerate(own)]
    for graphs in ("never", "auto"):
        summary = train(toys, tmp_path / graphs, *students, stacking="always", cuda_graphs=graphs)
        assert summary.exit_code == 0, summary.errors
    assert "Stack" in replays
    for i in range(len(own)):
        assert_same(weights(tmp_path / "auto", f"s{i}"), weights(tmp_path / "never", f"s{i}"))


def test_recorded_students_in_any_company_end_as_alone(toys: Cache, tmp_path: Path) -> None:
    students = [student(name, seed=3, **own) for name, own in zip("abcd", STUDENTS.values(), strict=False)]
    assert train(toys, tmp_path / "together", *students).exit_code == 0
    for each in students:
        train(toys, tmp_path / "alone", each)
        assert_same(weights(tmp_path / "together", each.name), weights(tmp_path / "alone", each.name))


def test_a_recorded_student_goes_on_where_it_stopped(toys: Cache, tmp_path: Path, replays: list[str]) -> None:
    each = student("s", **DROPOUT, objective=[LABELS, KD])
    train(toys, tmp_path / "whole", each)
    replays.clear()
    with pytest.raises(Interrupted):
        train(toys, tmp_path / "parted", each, stop=lambda: len(replays) >= 5)
    train(toys, tmp_path / "parted", each)
    assert_same(weights(tmp_path / "parted", "s"), weights(tmp_path / "whole", "s"))


OWN = """
import torch


class Own(torch.nn.Module):
    def __init__(self, classes, asks):
        super().__init__()
        self.layer = torch.nn.Linear(36, classes)
        self.asks = asks

    def forward(self, inputs):
        logits = self.layer(torch.nn.functional.dropout(inputs.flatten(1), 0.1, self.training))
        if self.asks and self.training:
            logits.sum().item()
        return logits


def own(num_classes, input_shape, asks):
    return Own(num_classes, asks)
"""


def test_what_cannot_be_recorded_is_told_and_disturbs_nobody(toys: Cache, tmp_path: Path, replays: list[str]) -> None:
    (tmp_path / "m.py").write_text(OWN)
    asking = student("a", architecture=f"{tmp_path}/m.py:own", options={"asks": True})
    other = student("b", **DROPOUT, objective=[LABELS, KD])
    events: list[Event] = []
    stream = torch.cuda.current_stream()
    summary = train(toys, tmp_path / "runs", asking, other, cuda_graphs="always", report=events.append)
    assert summary.exit_code == 0, summary.errors
    assert torch.cuda.current_stream() == stream
    (told,) = [event for event in events if isinstance(event, StepsNotRecorded)]
    assert told.students == "a"
    assert "m.py:" in told.why
    assert replays
    for each in (asking, other):
        train(toys, tmp_path / "alone", each, cuda_graphs="never")
        assert_same(weights(tmp_path / "runs", each.name), weights(tmp_path / "alone", each.name))


def test_a_users_own_model_is_recorded_only_if_its_job_says_so(toys: Cache, tmp_path: Path, replays: list[str]) -> None:
    (tmp_path / "m.py").write_text(OWN)
    for graphs in ("auto", "always"):
        own = student("s", architecture=f"{tmp_path}/m.py:own", options={"asks": False})
        assert train(toys, tmp_path / graphs, own, cuda_graphs=graphs).exit_code == 0
        assert bool(replays) == (graphs == "always")
    assert_same(weights(tmp_path / "auto", "s"), weights(tmp_path / "always", "s"))


def test_a_recording_that_finds_no_memory_is_done_without(
    toys: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replays: list[str]
) -> None:
    each = student("s", **DROPOUT, objective=[LABELS, KD])
    train(toys, tmp_path / "recorded", each)
    assert replays
    forward = torch.nn.Dropout.forward

    def refused(self: torch.nn.Dropout, inputs: torch.Tensor) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return forward(self, inputs)

    monkeypatch.setattr(torch.nn.Dropout, "forward", refused)
    replays.clear()
    events: list[Event] = []
    assert train(toys, tmp_path / "unrecorded", each, report=events.append).exit_code == 0
    assert not replays
    assert [event.students for event in events if isinstance(event, StepsNotRecorded)] == ["s"]
    assert_same(weights(tmp_path / "unrecorded", "s"), weights(tmp_path / "recorded", "s"))


@pytest.mark.parametrize("stacking", ["always", "never"])
def test_the_bound_of_a_gpus_memory_holds(tmp_path: Path, stacking: str) -> None:
    recipe = Recipe(rows=1_000, rows_per_shard=500, shape=(3, 32, 32), classes=10, features={})
    cache = write_cache(tmp_path / "cache", recipe)
    own: dict[str, Any] = {"architecture": "resnet", "options": {"depth": 8}, "batch_size": 128, "epochs": 2}
    students = [student(f"s{seed}", seed=seed, objective=[LABELS, KD], **own) for seed in range(8)]
    gc.collect()  # of tests before this one
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    events: list[Event] = []
    assert train(cache, tmp_path / "runs", *students, stacking=stacking, report=events.append).exit_code == 0
    (bound,) = [event.device_bytes for event in events if isinstance(event, MemoryProjected)]
    assert bound is not None
    peak = torch.cuda.max_memory_reserved() - before
    sys.stdout.write(f"{stacking}: {peak / 2**20:.0f} MiB reserved, bound {bound / 2**20:.0f} MiB\n")
    assert peak < 1.2 * bound


def test_auto_times_recorded_stacks_against_recorded_students(toys: Cache, tmp_path: Path, replays: list[str]) -> None:
    events: list[Event] = []
    students = [student(f"s{seed}", seed=seed, epochs=1) for seed in range(8)]
    assert train(toys, tmp_path, *students, stacking="auto", report=events.append).exit_code == 0
    (chosen,) = [event for event in events if isinstance(event, StackingChosen)]
    assert chosen.stacked
    assert set(replays) == {"Alone", "Stack"}
