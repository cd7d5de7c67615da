"""What is recorded as a CUDA graph and what is not; recordings themselves are tested in tests/gpu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from storage.encodings import DenseEncoding, Encoded
from storage.errors import BadRequest, StillroomError
from student_train import recorder
from student_train.needs import ArrayKey, Batch, MixedLabels
from student_train.recorder import Recorder, check_recordable, is_recorded
from tests.student_train.toys import student

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("architecture", "cuda_graphs", "where", "expected"),
    [
        ("mlp", "auto", {}, True),
        ("mlp", True, {}, True),
        ("mlp", False, {}, False),
        ("mlp", "auto", {"device": CPU}, False),
        ("mlp", "auto", {"of_tokens": True}, False),
        ("mlp", "auto", {"processes": 2}, False),
        ("m.py:own", "auto", {}, False),
        ("m.py:own", True, {}, True),
    ],
)
def test_built_in_students_are_recorded_where_they_can_be(
    architecture: str, cuda_graphs: Any, where: dict[str, Any], expected: bool
) -> None:
    options = student(architecture=architecture, cuda_graphs=cuda_graphs)
    assert is_recorded(options, **{"device": CUDA, "of_tokens": False, "processes": 1} | where) == expected


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ({"device": CPU}, "device cpu, which has no graphs"),
        ({"of_tokens": True}, "rows of tokens"),
        ({"processes": 2}, "2 processes"),
    ],
)
def test_cuda_graphs_are_refused_where_there_can_be_none(where: dict[str, Any], found: str) -> None:
    place: dict[str, Any] = {"device": CUDA, "of_tokens": False, "processes": 1} | where
    check_recordable(student(cuda_graphs="auto"), **place)
    with pytest.raises(BadRequest, match=found):
        check_recordable(student(cuda_graphs=True), **place)


def test_each_tensor_of_a_batch_is_seen_once_and_in_one_order() -> None:
    numbers = iter(range(10))

    def tensor() -> torch.Tensor:
        return torch.full((3,), next(numbers))

    encoded = Encoded(DenseEncoding(), 3, {"logits": tensor()})
    features = {ArrayKey("t", "feature/a"): tensor()}
    batch = Batch(tensor(), tensor(), {"t": encoded}, features, MixedLabels(tensor(), tensor()))
    assert sorted(int(values[0]) for values in batch.tensors()) == list(range(6))
    seen: list[torch.Tensor] = []
    other = batch.each(lambda values: seen.append(values) or values + 10)  # type: ignore[func-returns-value]
    assert sorted(int(values[0]) for values in seen) == list(range(6))
    assert [int(values[0]) for values in other.tensors()] == [int(values[0]) + 10 for values in batch.tensors()]
    assert Batch(torch.zeros(1)).each(torch.clone).tensors() == [torch.zeros(1)]


class Told:
    """Steps, and in place of a CUDA graph, which this machine may not have, one that says that it was replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: Exception | None = None):
        self.steps: list[str] = []
        told = self.steps

        class Graph:
            def __init__(self, take: Any, optimizer: Any, batches: Any):
                if refuses is not None:
                    raise refuses

            def replay(self, batches: Any) -> None:
                told.append("replayed")

        monkeypatch.setattr(recorder, "Recording", Graph)

    def take(self, batches: Sequence[Batch], *, measure_shares: bool) -> Any:
        self.steps.append("measured" if measure_shares else "taken")


def batch_of(rows: int) -> Batch:
    return Batch(torch.zeros(rows, 2), torch.zeros(rows, dtype=torch.int64))


def test_a_step_is_recorded_after_two_of_its_kind_and_no_other_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    steps = Recorder(told.take, student())
    for rows, measured in [(8, True), (8, False), (3, False), (8, False), (8, False), (8, False)]:
        steps.step([batch_of(rows)], measure_shares=measured)
    assert told.steps == ["measured", "taken", "taken", "taken", "taken", "replayed"]
    told.steps.clear()
    for rows, measured in [(8, True), (8, False), (3, False), (8, False)]:
        steps.step([batch_of(rows)], measure_shares=measured)
    assert told.steps == ["measured", "replayed", "taken", "replayed"]


@pytest.mark.parametrize("asked", ["auto", True])
@pytest.mark.parametrize("error", [RuntimeError("no.\nMore of it"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_step_that_cannot_be_recorded_is_taken_or_an_error(
    monkeypatch: pytest.MonkeyPatch, asked: Any, error: Exception
) -> None:
    told = Told(monkeypatch, refuses=error)
    steps = Recorder(told.take, student("s", cuda_graphs=asked))
    for _ in range(2):
        steps.step([batch_of(8)], measure_shares=False)
    if asked is True and not isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(
            StillroomError, match=r"student s cannot be recorded(?s:.)*found +no\.\n(?s:.)*cuda_graphs = false"
        ):
            steps.step([batch_of(8)], measure_shares=False)
        return
    for _ in range(2):
        steps.step([batch_of(8)], measure_shares=False)
    assert told.steps == ["taken"] * 4
