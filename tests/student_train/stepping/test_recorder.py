"""What is recorded as a CUDA graph and what is not; recordings themselves are tested in tests/gpu."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim import AdamW

from storage.cache import Cache
from storage.encodings import DenseEncoding, Encoded
from storage.errors import BadRequest
from student_train.feed.batches import ArrayKey, Batch, MixedLabels
from student_train.running import cohort, loop
from student_train.running.train import train_students
from student_train.stepping import recorder
from student_train.stepping.alone import Alone
from student_train.stepping.recorder import Recorder, check_recordable, copy_tensors, forget_recordings, is_recorded
from student_train.stepping.stack.stack import Stack
from student_train.stepping.state import TrainState
from student_train.students import Blueprint
from student_train.tasks import TASKS
from tests.student_train.toys import request_of, student

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("architecture", "cuda_graphs", "device", "expected"),
    [
        ("mlp", "auto", CUDA, True),
        ("mlp", "always", CUDA, True),
        ("mlp", "never", CUDA, False),
        ("mlp", "auto", CPU, False),
        ("gpt", "auto", CUDA, False),
        ("m.py:own", "auto", CUDA, False),
        ("m.py:own", "always", CUDA, True),
    ],
)
def test_built_in_students_are_recorded_where_they_can_be(
    architecture: str, cuda_graphs: Any, device: torch.device, expected: bool
) -> None:
    normalisation = None if architecture == "gpt" else (0.5,)
    spec = Blueprint(architecture=architecture, num_classes=4, input_shape=(8,), mean=normalisation, std=normalisation)
    assert is_recorded(cuda_graphs, spec, device) == expected


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"device": CPU}, "device cpu, which has no graphs"),
        ({"task": TASKS["language_model"]}, "rows of tokens"),
        ({"processes": 2}, "2 processes"),
    ],
)
def test_cuda_graphs_are_refused_where_there_can_be_none(where: dict[str, Any], found: str) -> None:
    place: dict[str, Any] = {"device": CUDA, "task": TASKS["image_classification"], "processes": 1} | where
    check_recordable("auto", **place)
    check_recordable("never", **place)
    with pytest.raises(BadRequest, match=found):
        check_recordable("always", **place)


def test_tensors_are_copied_by_name_since_views_have_arrays_in_other_orders() -> None:
    numbers = iter(range(20))

    def batch_of_all(order: int) -> Batch:
        arrays = {name: torch.full((3,), next(numbers)) for name in ("rest", "step")[::order]}
        features = {ArrayKey("t", name): torch.full((3,), next(numbers)) for name in ("a", "b")[::order]}
        shown, labels, partners, own = (torch.full((3,), next(numbers)) for _ in range(4))
        targets = {"t": Encoded(DenseEncoding(), 3, arrays)}
        return Batch(shown, labels, targets, features, MixedLabels(partners, own))

    own, other = batch_of_all(1).each(torch.clone), batch_of_all(-1)
    copy_tensors([other.tensors()], [own.tensors()])
    assert len(own.tensors()) == 8
    for name, values in own.tensors().items():
        assert torch.equal(values, other.tensors()[name])
    assert own.targets["t"].arrays["rest"][0] == other.targets["t"].arrays["rest"][0]
    assert own.mixed is not None
    assert other.mixed is not None
    assert torch.equal(own.mixed.own_weight_B, other.mixed.own_weight_B)
    assert Batch(torch.zeros(1)).each(torch.clone).tensors() == {"shown": torch.zeros(1)}


class Told:
    """Steps, and in place of a CUDA graph, which this machine may not have, one that says that it was replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: Exception | None = None):
        self.steps: list[str] = []
        told = self.steps

        class Graph:
            def __init__(self, kind: Any, take: Any, optimizer: Any, batches: Any):
                self.kind = kind
                if refuses is not None:
                    try:
                        raise refuses
                    except type(refuses):
                        raise RuntimeError("the graph has not come to its end")  # noqa: B904 - as torch does

            def replay(self, batches: Any) -> None:
                told.append("replayed")

        monkeypatch.setattr(recorder, "Recording", Graph)

    def take(self, batches: Sequence[Batch], *, measure_shares: bool) -> Any:
        self.steps.append("measured" if measure_shares else "taken")


def batch_of(rows: int) -> Batch:
    return Batch(torch.zeros(rows, 2), torch.zeros(rows, dtype=torch.int64))


def test_a_step_is_recorded_after_two_of_its_kind_and_no_other_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told, steps = Told(monkeypatch), Recorder()
    epoch = [(8, True), (8, False), (3, False)]  # of two batches and a smaller one
    for rows, measured in epoch * 3:
        steps.step(told.take, [batch_of(rows)], measure_shares=measured)
    assert told.steps == ["measured", "taken", "taken"] * 2 + ["measured", "replayed", "taken"]


def test_a_step_that_cannot_be_recorded_is_taken_and_the_first_cause_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told, steps = Told(monkeypatch, refuses=ValueError("no.\nMore of it")), Recorder()
    for _ in range(4):
        steps.step(told.take, [batch_of(8)], measure_shares=False)
    assert told.steps == ["taken"] * 4
    assert steps.refusal is not None
    assert re.fullmatch(r"ValueError: no\.  \(.*test_recorder\.py:\d+\)", steps.refusal)


@pytest.mark.parametrize("where", ["a step", "an evaluation", "predictions"])
def test_recordings_are_given_up_where_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, toy_cache: Cache, tmp_path: Path, where: str
) -> None:
    told, steps = Told(monkeypatch), Recorder()
    for _ in range(3):
        steps.step(told.take, [batch_of(8)], measure_shares=False)
    assert told.steps[-1] == "replayed"
    asked = student("s", options={"hidden": [16], "dropout": 0.5})
    train_students(request_of(toy_cache, tmp_path / "never", asked))
    fails = [torch.OutOfMemoryError("CUDA out of memory")]
    owner, name = {
        "a step": (AdamW, "step"),
        "an evaluation": (loop, "evaluate"),
        "predictions": (cohort, "ask_students"),
    }[where]
    asking = getattr(owner, name)

    def refusing(*arguments: Any, **named: Any) -> Any:
        of_students = owner is not AdamW or arguments[0].param_groups[0]["params"][0].device.type == "cpu"
        if fails and of_students:  # and not the one whose memory is measured
            raise fails.pop()
        return asking(*arguments, **named)

    monkeypatch.setattr(owner, name, refusing)
    summary = train_students(request_of(toy_cache, tmp_path / "refused", asked))
    assert summary.exit_code == 0, summary.errors
    assert not fails
    assert steps.refusal == "memory ran out"  # of another student
    assert not forget_recordings()
    found, expected = (load_file(tmp_path / how / "s/student.safetensors") for how in ("refused", "never"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_students_and_their_recordings_are_gone_as_soon_as_nobody_holds_them() -> None:
    spec = Blueprint(architecture="mlp", num_classes=4, input_shape=(1, 6, 6), mean=(0.5,), std=(0.5,))

    def state(seed: int) -> TrainState:
        return TrainState.fresh(student(seed=seed, options={}), spec, {}, CPU)

    state(0)  # the first one imports what is imported once
    gc.disable()
    try:
        for make in (lambda one: Alone(one, recorded=True), lambda one: Stack([one, state(1)], recorded=True)):
            one = state(0)
            stepper = make(one)
            held = [weakref.ref(each) for each in (stepper, one.student, one.optimizer)]
            stepper.release()
            del one, stepper
            assert [each() for each in held] == [None] * 3
    finally:
        gc.enable()
