"""Students of one architecture as one program end where they would have ended alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from storage.cache import Cache
from storage.encodings import SparseEncoding
from storage.errors import DivergedLoss, Interrupted
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.preparing.request import Request
from student_train.run_files.checkpoint import read_checkpoint
from student_train.running.events import Event, StackingChosen, StackTakenApart
from student_train.running.train import Summary, train_students
from student_train.stepping.gradients.rows import Step
from student_train.stepping.stack.stack import Stack
from tests.student_train.running.test_loop import stop_after, weights
from tests.student_train.toys import HINT, KD, LABELS, Recipe, request_of, student, write_cache

CNN = {"architecture": "cnn", "options": {"widths": [4, 8]}}
RESNET = {"architecture": "resnet", "options": {"depth": 8, "width": 4}}
SGD = {"optimizer": "sgd", "learning_rate": 0.05}


def train(
    cache: Cache, runs: Path, students: list[StudentOptions], stacking: str = "always", **keywords: Any
) -> Summary:
    request = request_of(cache, runs, *students, **keywords.pop("data", {}))
    fleet = FleetOptions.model_validate({"stacking": stacking} | keywords.pop("fleet", {}))
    all_are_to_end = not keywords
    report = keywords.pop("report", lambda event: None)

    def whole(event: Event) -> None:
        assert not isinstance(event, StackTakenApart), event.why
        report(event)

    request = Request(request.cache, runs, request.data, request.students, "cpu", fleet)
    summary = train_students(request, report=whole, **keywords)
    for error in summary.errors.values():
        if all_are_to_end:
            raise error
    return summary


def stacked(events: list[Event]) -> list[bool]:
    return [event.stacked for event in events if isinstance(event, StackingChosen)]


@pytest.mark.parametrize(
    ("common", "own"),
    [
        (SGD, [{"seed": 0}, {"seed": 1}, {"seed": 2}]),
        (SGD | CNN, [{"learning_rate": 0.02}, {"weight_decay": 0.1}, {"momentum": 0.5}]),
        (SGD | RESNET, [{"seed": 0}, {"seed": 1}]),
        ({"weight_decay": 0.1}, [{"learning_rate": 0.003}, {"momentum": 0.8}, {"weight_decay": 0.0}]),
        ({"weight_decay": 5.0, "decay_norms_and_biases": False}, [{"weight_decay": 1.0}, {"seed": 1}]),
        (SGD | CNN | {"weight_decay": 0.5, "decay_norms_and_biases": False}, [{"weight_decay": 0.1}, {"seed": 1}]),
        ({"betas": (0.8, 0.95), "eps": 1e-4}, [{"betas": (0.7, 0.95)}, {"seed": 1}]),
        (SGD, [{"objective": [LABELS | {"weight": w}, KD | {"temperature": t}]} for w, t in ((1, 1), (2, 4), (3, 4))]),
        (SGD, [{"objective": [LABELS, HINT | {"weight": w}]} for w in (0.5, 2.0)]),
        (SGD | {"clip_norm": 0.5, "warmup_epochs": 1}, [{"clip_norm": 0.1}, {"schedule": "constant"}, {"epochs": 2}]),
        (SGD | CNN | {"ema_decay": 0.9, "patience_epochs": 5}, [{"ema_decay": 0.5}, {"seed": 3}]),
        (
            SGD | {"objective": [HINT], "weight_decay": 0.5},
            [{"seed": 0}, {"seed": 1}],
        ),  # the head is reached by no loss
    ],
)
def test_stacked_students_end_as_alone(
    toy_cache: Cache, tmp_path: Path, common: dict[str, Any], own: list[dict[str, Any]]
) -> None:
    students = [student(f"s{i}", **common | each) for i, each in enumerate(own)]
    events: list[Event] = []
    train(toy_cache, tmp_path / "stacked", students, report=events.append)
    assert stacked(events) == [True]
    for each in students:
        train(toy_cache, tmp_path / "alone", [each])
        found, expected = (
            load_file(tmp_path / how / each.name / "student.safetensors") for how in ("stacked", "alone")
        )
        for name, values in expected.items():
            assert torch.allclose(found[name], values, rtol=1e-3, atol=1e-4), (each.name, name)


@pytest.mark.parametrize(("stacking", "temperature"), [("always", 2.0), ("always", 1.0), ("never", 1.0)])
def test_sparse_targets_teach_a_stack_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stacking: str, temperature: float
) -> None:
    monkeypatch.setattr("student_train.losses.together.FEWEST_CLASSES", 0)  # at temperature 1 both terms are one
    encoding = SparseEncoding(k=2, values="8bit", temperatures=[1.0, 2.0])
    cache = write_cache(tmp_path / "cache", Recipe(encoding=encoding))
    objective = [KD | {"temperature": temperature}, LABELS]
    students = [student(f"s{i}", objective=objective, seed=i, **SGD) for i in range(3)]
    train(cache, tmp_path / "found", students, stacking)
    monkeypatch.undo()
    train(cache, tmp_path / "alone", students, stacking="never")
    for each in students:
        found, expected = (load_file(tmp_path / how / each.name / "student.safetensors") for how in ("found", "alone"))
        assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)


@pytest.mark.parametrize("other", [{"betas": (0.9, 0.95)}, {"eps": 1e-6}, {"decay_norms_and_biases": False}])
def test_students_of_other_optimisers_are_not_stacked(toy_cache: Cache, tmp_path: Path, other: dict[str, Any]) -> None:
    events: list[Event] = []
    train(toy_cache, tmp_path, [student("a"), student("b", **other)], report=events.append)
    assert stacked(events) == []


def test_a_stacked_students_figures_are_those_of_its_own_weights(toy_cache: Cache, tmp_path: Path) -> None:
    students = [student(f"s{i}", objective=[LABELS, KD], seed=i, **SGD) for i in range(3)]
    together = train(toy_cache, tmp_path / "stacked", students).records
    alone = train(toy_cache, tmp_path / "alone", students, stacking="never").records
    assert [r.accuracy for r in together] == pytest.approx([r.accuracy for r in alone], abs=0.05)
    assert [r.cross_entropy for r in together] == pytest.approx([r.cross_entropy for r in alone], rel=1e-3)
    assert [r.agreement for r in together] == pytest.approx([r.agreement for r in alone], abs=0.05)


def test_the_checkpoint_of_a_stacked_student_is_that_of_one_alone(toy_cache: Cache, tmp_path: Path) -> None:
    names = {}
    for stacking in ("always", "never"):
        students = [student(f"s{i}", seed=i, ema_decay=0.9) for i in range(2)]
        with pytest.raises(Interrupted):
            train(toy_cache, tmp_path / stacking, students, stacking, stop=stop_after(10 + 3))
        identity = train_identity(toy_cache, tmp_path / stacking, students)
        found = read_checkpoint(tmp_path / stacking / "s0", identity)
        assert found is not None
        assert (found[0].step, found[0].stacked) == (3, stacking == "always")
        names[stacking] = {name: tuple(tensor.shape) for name, tensor in found[1].items()}
    assert names["always"] == names["never"]


def train_identity(cache: Cache, runs: Path, students: list[StudentOptions]) -> dict[str, Any]:
    from student_train.preparing.prepare import prepare

    return prepare(request_of(cache, runs, *students))[0].identity


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_stack_goes_on_to_the_same_weights(toy_cache: Cache, tmp_path: Path, optimizer: str) -> None:
    students = [student(f"s{i}", seed=i, optimizer=optimizer, ema_decay=0.9, **CNN) for i in range(3)]
    train(toy_cache, tmp_path / "whole", students)
    for stop in (10 + 4, 10 + 9):
        with pytest.raises(Interrupted):
            train(toy_cache, tmp_path / "parts", students, stop=stop_after(stop))
    events: list[Event] = []
    train(toy_cache, tmp_path / "parts", students, stacking="auto", report=events.append)
    assert stacked(events) == [True]  # as they were, whatever a new trial would have found
    for each in students:
        assert weights(tmp_path / "parts", each.name) == weights(tmp_path / "whole", each.name)


def test_a_stack_goes_on_one_by_one_where_the_job_says_so(toy_cache: Cache, tmp_path: Path) -> None:
    students = [student(f"s{i}", seed=i, **SGD) for i in range(3)]
    train(toy_cache, tmp_path / "whole", students)
    with pytest.raises(Interrupted):
        train(toy_cache, tmp_path / "parts", students, stop=stop_after(10 + 9))
    train(toy_cache, tmp_path / "parts", students, stacking="never")
    for each in students:
        found, expected = (load_file(tmp_path / how / each.name / "student.safetensors") for how in ("parts", "whole"))
        assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)


def test_a_diverging_student_leaves_its_stack_and_the_others_as_they_would_be(toy_cache: Cache, tmp_path: Path) -> None:
    calm = [student(f"s{i}", seed=i, epochs=4, **SGD) for i in range(2)]
    wild = student("wild", epochs=4, **SGD | {"learning_rate": 1000.0})
    events: list[Event] = []
    summary = train(toy_cache, tmp_path / "fleet", [calm[0], wild, calm[1]], report=events.append)
    assert stacked(events) == [True]
    assert isinstance(summary.errors["wild"], DivergedLoss)
    train(toy_cache, tmp_path / "calm", calm, stacking="never")
    for each in calm:
        found, expected = (load_file(tmp_path / how / each.name / "student.safetensors") for how in ("fleet", "calm"))
        assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_who_is_left_of_a_stack_goes_on_as_alone(toy_cache: Cache, tmp_path: Path, optimizer: str) -> None:
    own = {"optimizer": optimizer, "learning_rate": 0.01}
    short, long = student("short", epochs=1, **own), student("long", seed=1, epochs=4, **own)
    events: list[Event] = []
    train(toy_cache, tmp_path / "fleet", [short, long], report=events.append)
    assert stacked(events) == [True]
    train(toy_cache, tmp_path / "alone", [long], stacking="never")
    found, expected = (load_file(tmp_path / how / "long/student.safetensors") for how in ("fleet", "alone"))
    assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)


def test_what_draws_random_numbers_is_not_stacked(toy_cache: Cache, tmp_path: Path) -> None:
    students = [student(f"s{i}", seed=i, options={"hidden": [16], "dropout": 0.5}) for i in range(2)]
    events: list[Event] = []
    train(toy_cache, tmp_path, students, report=events.append)
    choice = next(event for event in events if isinstance(event, StackingChosen))
    assert not choice.stacked
    assert choice.why == "they cannot be one program: each draws random numbers of its own, as dropout does"


def test_the_choice_is_made_by_timing_both(toy_cache: Cache, tmp_path: Path) -> None:
    events: list[Event] = []
    students = [student(f"s{i}", seed=i) for i in range(6)]
    train(toy_cache, tmp_path, students, stacking="auto", report=events.append)
    choice = next(event for event in events if isinstance(event, StackingChosen))
    assert len(choice.students) == 6
    assert "ms stacked" in choice.why
    assert "ms one by one" in choice.why


@pytest.mark.parametrize(("seconds", "steps"), [(5.0, 1 + 3), (0.0, 1 + 1)])
def test_a_trial_of_slow_steps_is_short(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, steps: int
) -> None:
    taken: list[int] = []
    step = Stack.step

    def counted(self: Stack, *args: Any, **keywords: Any) -> Step:
        taken.append(len(self.states))
        return step(self, *args, **keywords)

    monkeypatch.setattr(Stack, "step", counted)
    monkeypatch.setattr("student_train.running.stacking.TRIAL_S", seconds)
    monkeypatch.setattr(
        "student_train.running.stacking.CLEARLY_FASTER", 0.0
    )  # so that the trial's are all the steps of a stack
    train(toy_cache, tmp_path, [student(f"s{i}", seed=i) for i in range(2)], stacking="auto")
    assert taken == [2] * steps


def test_a_trial_changes_no_student(toy_cache: Cache, tmp_path: Path) -> None:
    students = [student(f"s{i}", seed=i, **CNN) for i in range(2)]
    train(toy_cache, tmp_path / "never", students, stacking="never")
    for each in students:  # the trial's outcome is a matter of time; where it is one by one, all must be the same
        train(toy_cache, tmp_path / "alone", [each], stacking="auto")
        assert weights(tmp_path / "alone", each.name) == weights(tmp_path / "never", each.name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's own compiler
def test_a_compiled_stack_learns_the_same(toy_cache: Cache, tmp_path: Path) -> None:
    students = [student(f"s{i}", seed=i, compile=True, **SGD) for i in range(2)]
    events: list[Event] = []
    train(toy_cache, tmp_path / "compiled", students, report=events.append)
    assert stacked(events) == [True]
    eager = [each.model_copy(update={"compile": False}) for each in students]
    train(toy_cache, tmp_path / "eager", eager)
    for each in students:
        found, expected = (
            load_file(tmp_path / how / each.name / "student.safetensors") for how in ("compiled", "eager")
        )
        assert all(torch.allclose(found[name], expected[name], atol=1e-3) for name in expected)
