"""Many students of one pass: what they share, what they do not notice, and how they go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from storage.cache import Cache
from storage.errors import BadRequest, CorruptObject, Interrupted
from storage.format.shards import ShardKey
from student_train.feed.batches import Needs
from student_train.feed.feed import ShardSource
from student_train.feed.residency import Residency
from student_train.feed.selection import Selection, select_rows
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.preparing.prepare import prepare
from student_train.preparing.request import Request
from student_train.preparing.weighing import projection
from student_train.run_files.predictions import HeldTable
from student_train.run_files.records import read_record
from student_train.running import one_pass
from student_train.running.events import Event, FeedChosen, PassStarted, StackTakenApart, StudentStopped
from student_train.running.train import Summary, train_students
from student_train.stepping.stack.weights import StackedOptimizer, StackedWeights
from tests.damage import flip
from tests.student_train.running.test_loop import stop_after, weights
from tests.student_train.toys import BATCH_NORM, HINT, KD, LABELS, Recipe, request_of, student, write_cache


def train(cache: Cache, runs: Path, *students: StudentOptions, **keywords: Any) -> Summary:
    request = request_of(cache, runs, *students, **keywords.pop("data", {}))
    fleet = FleetOptions.model_validate({"stacking": "never"} | keywords.pop("fleet", {}))
    return train_students(Request(request.cache, runs, request.data, request.students, "cpu", fleet), **keywords)


VARIED = [
    student("labels"),
    student("kd", objective=[KD], seed=1),
    student("hint", objective=[LABELS, HINT], batch_size=20),
    student("cnn", architecture="cnn", options={"widths": [4, 8]}, batch_size=20, epochs=2),
    student("dropout", options={"hidden": [16], "dropout": 0.5}, seed=4),
    student("patient", epochs=6, patience_epochs=1, ema_decay=0.9),
]


@pytest.mark.parametrize("residency", ["auto", "stream"])
def test_every_student_ends_as_if_it_were_alone(toy_cache: Cache, tmp_path: Path, residency: str) -> None:
    data = {"residency": residency, "window_shards": 2}
    assert train(toy_cache, tmp_path / "fleet", *VARIED, data=data).exit_code == 0
    for each in VARIED:
        train(toy_cache, tmp_path / "alone", each, data=data)
        assert weights(tmp_path / "fleet", each.name) == weights(tmp_path / "alone", each.name), each.name


@pytest.mark.parametrize("residency", ["auto", "stream"])
@pytest.mark.parametrize("stacking", ["never", "always"])
def test_batch_norm_is_trained_where_a_row_is_left_over(
    toy_cache: Cache, tmp_path: Path, residency: str, stacking: str
) -> None:
    (tmp_path / "m.py").write_text(BATCH_NORM)
    own = {"architecture": f"{tmp_path}/m.py:net", "options": {}, "batch_size": 191}  # of 192 rows
    pair = [student("a", **own), student("b", **own, seed=1)]
    data, fleet = {"residency": residency, "window_shards": 2}, {"stacking": stacking}
    assert train(toy_cache, tmp_path / "runs", *pair, data=data, fleet=fleet).errors == {}
    assert len(pl.read_parquet(tmp_path / "runs/a/steps/00001.parquet")) == 1


def test_rows_are_read_once_for_all_students(toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[tuple[str, int]] = Counter()
    read = ShardSource.reading

    def counted(self: ShardSource, index: int, names: Any) -> Any:
        reads[self.selection.fingerprint, index] += 1
        return read(self, index, names)

    monkeypatch.setattr(ShardSource, "reading", counted)
    students = [student(f"s{i}", objective=[KD], batch_size=16 * (1 + i % 2), epochs=2) for i in range(4)]
    train(toy_cache, tmp_path, *students, data={"residency": "stream", "window_shards": 2})
    trained = select_rows(toy_cache.samples(), "toy/train", Needs(labels=True)).fingerprint
    assert {count for (rows, _), count in reads.items() if rows == trained} == {2}  # epochs
    # Held rows: each epoch, and once more for what is said of each, by all students of a batch size.
    assert {count for (rows, _), count in reads.items() if rows != trained} == {2 * (2 + 1)}


def test_students_of_other_rows_have_a_pass_of_their_own(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe(no_teacher=frozenset({2})))
    students = [student("taught", objective=[KD]), student("labelled"), student("too", seed=1)]
    events: list[Event] = []
    train(cache, tmp_path / "runs", *students, data={"allow_partial": True}, report=events.append)
    assert [event.students for event in events if isinstance(event, PassStarted)] == ["taught", "2 students"]


def test_no_more_students_share_a_pass_than_the_job_says(toy_cache: Cache, tmp_path: Path) -> None:
    events: list[Event] = []
    students = [student(f"s{i}", seed=i) for i in range(5)]
    train(toy_cache, tmp_path, *students, fleet={"at_once": 2}, report=events.append)
    assert [event.students for event in events if isinstance(event, PassStarted)] == ["2 students", "2 students", "s4"]


def test_what_is_known_of_held_rows_is_read_once_for_all_passes(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, inner = [], one_pass.held_table

    def counted(cache: Cache, selection: Selection, teacher: str | None) -> HeldTable:
        read.append(teacher)
        return inner(cache, selection, teacher)

    monkeypatch.setattr(one_pass, "held_table", counted)
    students = [student(f"s{i}", seed=i, objective=[KD] if i % 2 else [LABELS]) for i in range(4)]
    train(toy_cache, tmp_path, *students, fleet={"at_once": 1})
    assert sorted(read, key=str) == [None, "sage"]


def test_damaged_rows_fail_all_students_of_their_pass(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe())
    flip(cache, ShardKey("toy", None, "plain", 1))
    for residency in ("auto", "stream"):
        summary = train(cache, tmp_path / residency, student("a"), student("b"), data={"residency": residency})
        assert {name: type(error) for name, error in summary.errors.items()} == {"a": CorruptObject, "b": CorruptObject}
        assert summary.exit_code == 65
        record = read_record(tmp_path / residency / "b")
        assert record is not None
        assert record.status == "failed"


def test_every_step_is_in_the_metrics(toy_cache: Cache, tmp_path: Path) -> None:
    train(toy_cache, tmp_path, student("a", objective=[LABELS, KD]), student("b", epochs=2))
    steps = pl.read_parquet(tmp_path / "a/steps/*.parquet")
    assert steps.columns == ["epoch", "step", "learning_rate", "train_loss", "term labels", "term kd:sage"]
    assert steps["epoch"].to_list() == [epoch for epoch in (1, 2, 3) for _ in range(6)]
    epochs = pl.read_parquet(tmp_path / "a/metrics.parquet")
    of_rows = steps.with_columns(rows=pl.when(pl.col("step") == 5).then(32).otherwise(32))
    mean = of_rows.group_by("epoch", maintain_order=True).agg(pl.col("train_loss").mean())["train_loss"]
    assert mean.to_list() == pytest.approx(epochs["train_loss"].to_list(), rel=1e-5)


def test_steps_before_an_interruption_stay_in_the_metrics(toy_cache: Cache, tmp_path: Path) -> None:
    train(toy_cache, tmp_path / "whole", student("a"))
    with pytest.raises(Exception, match="stopped"):
        train(toy_cache, tmp_path / "parts", student("a"), stop=stop_after(10 + 3))
    train(toy_cache, tmp_path / "parts", student("a"))
    whole, parts = (pl.read_parquet(tmp_path / how / "a/steps/*.parquet") for how in ("whole", "parts"))
    assert parts.equals(whole)


HALVING = {"halving": {"first_epochs": 1, "factor": 2}}
RATES = (0.00001, 0.0001, 0.003, 0.01)


def test_halving_sets_the_worst_aside(toy_cache: Cache, tmp_path: Path) -> None:
    events: list[Event] = []
    students = [student(f"s{i}", learning_rate=rate, epochs=4) for i, rate in enumerate(RATES)]
    summary = train(toy_cache, tmp_path, *students, fleet=HALVING, report=events.append)
    assert summary.exit_code == 0
    stopped = {event.record.student: event.record.epochs for event in events if isinstance(event, StudentStopped)}
    assert {r.student: (r.status, r.epochs) for r in summary.records} == {
        name: ("stopped", stopped[name]) if name in stopped else ("finished", 4) for name in ("s0", "s1", "s2", "s3")
    }
    assert sorted(stopped.values()) == [1, 1, 2]
    assert stopped["s0"] == stopped["s1"] == 1
    assert (tmp_path / "s0/student.safetensors").exists()
    for name, epochs in stopped.items():
        assert json.loads((tmp_path / name / "checkpoint.json").read_text())["epoch"] == epochs
    record = read_record(tmp_path / "s0")
    assert record is not None
    assert record.error is not None
    assert record.error.startswith("set aside after 1 epoch: accuracy 0.")
    assert record.error.endswith("of 4; the best 2 went on")


def test_a_student_that_was_set_aside_stays_so_until_the_section_changes(toy_cache: Cache, tmp_path: Path) -> None:
    students = [student(f"s{i}", learning_rate=rate, epochs=4) for i, rate in enumerate(RATES)]
    before = train(toy_cache, tmp_path, *students, fleet=HALVING)
    assert train(toy_cache, tmp_path, *students, fleet=HALVING) == before
    after = train(toy_cache, tmp_path, *students)
    assert {record.status for record in after.records} == {"finished"}
    train(toy_cache, tmp_path / "never halved", *students)
    for each in students:
        assert weights(tmp_path, each.name) == weights(tmp_path / "never halved", each.name)


def test_halving_by_a_figure_that_nobody_has_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe(unlabelled=frozenset(range(240))))
    with pytest.raises(BadRequest, match="compares students by accuracy"):
        train(cache, tmp_path / "runs", student(objective=[KD]), fleet=HALVING)


def test_a_fleet_that_does_not_fit_is_refused_with_the_number_that_does(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = [student(f"s{i}", options={"hidden": [2000, 2000]}, seed=i) for i in range(9)]
    monkeypatch.setattr(projection, "free_bytes", lambda device: 250 * 2**20)
    with pytest.raises(BadRequest, match="9 students do not fit on cpu") as refusal:
        train(toy_cache, tmp_path / "runs", *wide, fleet={"stacking": "auto"})
    assert refusal.value.do is not None
    few = int(refusal.value.do.removeprefix("at_once = "))
    assert 1 <= few < 9
    assert not (tmp_path / "runs").exists()
    events: list[Event] = []
    short = [each.model_copy(update={"epochs": 1}) for each in wide[: few + 1]]
    train(toy_cache, tmp_path / "runs", *short, fleet={"at_once": few}, report=events.append)
    assert any(isinstance(event, FeedChosen) for event in events)


def test_what_is_optional_is_given_up_for_memory_recordings_before_stacks(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(request_of(toy_cache, tmp_path, *[student(f"s{i}", seed=i) for i in range(4)]))
    rows, gpu = Residency("device", 0, ""), torch.device("cuda")

    def bound(**fleet: str) -> int:
        options = FleetOptions.model_validate(fleet)
        return projection.project_memory(prepared, rows, 4, gpu, options).to_come_bytes

    bounds = [bound(), bound(cuda_graphs="never"), bound(cuda_graphs="never", stacking="never")]
    assert bounds == sorted(bounds, reverse=True)
    assert len(set(bounds)) == 3
    for free, expected in zip(bounds, [("auto", "auto"), ("never", "auto"), ("never", "never")], strict=True):
        monkeypatch.setattr(projection, "free_bytes", lambda device, free=free: free)
        fleet, memory = projection.fit(prepared, rows, 4, gpu, FleetOptions())
        assert (fleet.cuda_graphs, fleet.stacking) == expected
        assert memory.to_come_bytes == free
    monkeypatch.setattr(projection, "free_bytes", lambda device: bounds[1])
    with pytest.raises(BadRequest, match="4 students do not fit on cuda"):
        projection.fit(prepared, rows, 4, gpu, FleetOptions(cuda_graphs="always", stacking="always"))


OWN = """
import torch
def own(num_classes, input_shape):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(36, num_classes)
        def forward(self, x):
            stacked = torch._C._functorch.is_batchedtensor(self.layer.weight)
            if self.training and stacked and limit():
                raise torch.OutOfMemoryError("no memory for so many")
            return self.layer(x.flatten(1))
    return Own()
def limit():
    import os
    return os.path.exists(LIMIT)
"""


def test_a_stack_without_memory_is_halved_and_goes_on(toy_cache: Cache, tmp_path: Path) -> None:
    limit = tmp_path / "limit"
    (tmp_path / "m.py").write_text(OWN.replace("LIMIT", repr(str(limit))))
    own = {"architecture": f"{tmp_path}/m.py:own", "options": {}, "optimizer": "sgd"}
    students = [student(f"s{i}", seed=i, **own) for i in range(4)]
    train(toy_cache, tmp_path / "alone", *students)
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if isinstance(event, PassStarted):
            limit.touch()  # from now on it is as if a stack found no memory
        if isinstance(event, StackTakenApart) and sum(isinstance(e, StackTakenApart) for e in events) == 1:
            limit.unlink()  # but each half does

    train(toy_cache, tmp_path / "stacked", *students, fleet={"stacking": "always"}, report=report)
    apart = [event for event in events if isinstance(event, StackTakenApart)]
    assert [(event.stack, event.parts) for event in apart] == [("s0 and 3 like it", 2)]
    assert "no memory for so many" in apart[0].why
    for each in students:
        found, expected = (torch_weights(tmp_path / how / each.name) for how in ("stacked", "alone"))
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


@pytest.mark.parametrize("where", ["StackedWeights.add_gradients", "StackedOptimizer._adamw"])
def test_a_step_that_ran_out_of_memory_leaves_nothing_behind(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    students = [student(f"s{i}", seed=i, architecture="cnn", options={"widths": [4, 8]}) for i in range(4)]
    train(toy_cache, tmp_path / "whole", *students, fleet={"stacking": "always"})
    events: list[Event] = []
    fail_once(monkeypatch, where, events)
    train(toy_cache, tmp_path / "halved", *students, fleet={"stacking": "always"}, report=events.append)
    assert [event.parts for event in events if isinstance(event, StackTakenApart)] == [2]
    for each in students:
        found, expected = (torch_weights(tmp_path / how / each.name) for how in ("halved", "whole"))
        assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


@pytest.mark.parametrize(("optimizer", "fitting"), [("sgd", 0), ("adamw", 0), ("adamw", 1)])
def test_without_memory_for_halves_each_student_goes_on_by_itself(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, fitting: int
) -> None:
    students = [student(f"s{i}", seed=i, optimizer=optimizer) for i in range(4)]
    train(toy_cache, tmp_path / "alone", *students, student("other", architecture="cnn", options={}))
    events: list[Event] = []
    fail_once(monkeypatch, "StackedWeights.add_gradients", events)
    make = StackedWeights.__init__
    made = []

    def out_of_memory(self: StackedWeights, *args: Any, **options: Any) -> None:
        if any(isinstance(event, PassStarted) for event in events):
            made.append(1)
            if len(made) > fitting:
                raise torch.OutOfMemoryError("nor for a copy")
        make(self, *args, **options)

    monkeypatch.setattr(StackedWeights, "__init__", out_of_memory)
    everyone = [*students, student("other", architecture="cnn", options={})]
    summary = train(toy_cache, tmp_path / "runs", *everyone, fleet={"stacking": "always"}, report=events.append)
    assert summary.exit_code == 0
    assert [event.parts for event in events if isinstance(event, StackTakenApart)] == [4]
    for each in everyone:
        found, expected = (torch_weights(tmp_path / how / each.name) for how in ("runs", "alone"))
        assert all(torch.allclose(found[name], expected[name], atol=1e-4) for name in expected)


def fail_once(monkeypatch: pytest.MonkeyPatch, where: str, events: list[Event]) -> None:
    """Let a stack's gradient or update find no memory in the tenth step after the pass has begun."""
    kind, _, name = where.partition(".")
    owner = {"StackedWeights": StackedWeights, "StackedOptimizer": StackedOptimizer}[kind]
    method, calls = getattr(owner, name), []

    def out_of_memory(self: Any, *args: Any, **options: Any) -> Any:
        if any(isinstance(event, PassStarted) for event in events):
            calls.append(1)
            if len(calls) == 10:
                raise torch.OutOfMemoryError("no memory for so many")
        return method(self, *args, **options)

    monkeypatch.setattr(owner, name, out_of_memory)


@pytest.mark.parametrize("stop_at", [25, 40])
def test_an_interruption_decides_no_other_halving(toy_cache: Cache, tmp_path: Path, stop_at: int) -> None:
    students = [student(f"s{i}", learning_rate=0.0003 * (i + 1), seed=i) for i in range(8)]
    fleet = {"stacking": "never", "at_once": 4, "halving": {"first_epochs": 1, "factor": 2}}
    expected = train(toy_cache, tmp_path / "whole", *students, fleet=fleet)
    with pytest.raises(Interrupted):
        train(toy_cache, tmp_path / "cut", *students, fleet=fleet, stop=stop_after(stop_at))
    found = train(toy_cache, tmp_path / "cut", *students, fleet=fleet)
    assert [(r.student, r.status, r.epochs) for r in found.records] == [
        (r.student, r.status, r.epochs) for r in expected.records
    ]


def torch_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "student.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("stacking", ["never", "always"])
def test_a_fleet_killed_at_any_moment_goes_on_with_every_student_where_it_was(
    toy_cache: Cache, tmp_path: Path, stacking: str
) -> None:
    students = [student(f"s{i}", seed=i, epochs=2, checkpoint_every_steps=4, optimizer="sgd") for i in range(3)]
    fleet = {"stacking": stacking}
    train(toy_cache, tmp_path / "whole", *students, fleet=fleet)
    sections = json.dumps([each.model_dump(mode="json", exclude_none=True) for each in students])
    arguments = [toy_cache.url, str(tmp_path / "killed"), sections, "61", "one", "toy", json.dumps(fleet)]
    command = [sys.executable, "-m", "tests.student_train.killer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2
    for each in students:
        assert weights(tmp_path / "killed", each.name) == weights(tmp_path / "whole", each.name)
