from __future__ import annotations

import errno
import fcntl
import shutil
from pathlib import Path
from typing import Any

import pytest

from storage.cache import Cache
from storage.cache.standing import Standing
from storage.errors import BadRequest, IncompleteCache, Interrupted, NotInCache, StaleCache, StillroomError, TryAgain
from storage.views import PLAIN
from student_train.run_files.folder import RunFolder
from student_train.run_files.records import read_record
from student_train.running.events import (
    Event,
    FeedChosen,
    Loading,
    MemoryProjected,
    Progress,
    RunsNotLocked,
    StudentFailed,
    StudentFinished,
    StudentSkipped,
    StudentStarted,
    TeacherNearChance,
)
from student_train.running.train import train_students
from student_train.students import load_student
from tests.student_train.running.test_loop import stop_after, weights
from tests.student_train.toys import HINT, KD, LABELS, Recipe, request_of, student, write_cache

BROKEN = """
import torch
class Broken(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(36, num_classes)
    def forward(self, x):
        if self.training and len(x) < 45:
            raise IndexError("too few rows")
        return self.layer(x.flatten(1))
def broken(num_classes, input_shape):
    return Broken(num_classes)
def whole(num_classes, input_shape):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, num_classes))
"""


def test_every_student_is_trained_in_the_order_of_the_job(toy_cache: Cache, tmp_path: Path) -> None:
    events: list[Event] = []
    students = [student("b"), student("a", objective=[KD]), student("c", objective=[LABELS, HINT])]
    summary = train_students(request_of(toy_cache, tmp_path, *students), report=events.append)
    assert [record.student for record in summary.records] == ["b", "a", "c"]
    first = [type(event) for event in events if not isinstance(event, Loading)][:3]
    assert first == [MemoryProjected, FeedChosen, StudentStarted]
    assert summary.exit_code == 0


def test_a_finished_job_does_nothing(toy_cache: Cache, tmp_path: Path) -> None:
    request = request_of(toy_cache, tmp_path, student("a"), student("b"))
    before = train_students(request)
    events: list[Event] = []
    assert train_students(request, report=events.append) == before
    assert [type(event) for event in events] == [StudentSkipped, StudentSkipped]


def test_a_new_student_of_a_finished_job_is_the_only_one_trained(toy_cache: Cache, tmp_path: Path) -> None:
    train_students(request_of(toy_cache, tmp_path, student("a")))
    events: list[Event] = []
    train_students(request_of(toy_cache, tmp_path, student("a"), student("b")), report=events.append)
    assert [event.record.student for event in events if isinstance(event, StudentFinished)] == ["b"]


def test_a_student_does_not_depend_on_its_neighbours(toy_cache: Cache, tmp_path: Path) -> None:
    train_students(request_of(toy_cache, tmp_path / "alone", student("b", objective=[KD])))
    neighbour = student("a", options={"hidden": [16], "dropout": 0.5}, seed=4)
    train_students(request_of(toy_cache, tmp_path / "after", neighbour, student("b", objective=[KD])))
    assert weights(tmp_path / "alone", "b") == weights(tmp_path / "after", "b")


def test_a_changed_job_is_refused_for_a_finished_student(toy_cache: Cache, tmp_path: Path) -> None:
    train_students(request_of(toy_cache, tmp_path, student("a")))
    with pytest.raises(StaleCache, match=r"student.batch_size, student.epochs changed") as refusal:
        train_students(request_of(toy_cache, tmp_path, student("a", epochs=4, batch_size=16)))
    assert refusal.value.expected == "student.batch_size = 16\nstudent.epochs = 4"


def test_a_changed_teacher_is_refused_for_a_finished_student(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe())
    request = request_of(cache, tmp_path / "runs", student("a", objective=[KD]))
    train_students(request)
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "cache/cache.json", tmp_path / "again")  # the same cache, built by another teacher
    again = write_cache(tmp_path / "again", Recipe(teacher="another"))
    with pytest.raises(StaleCache, match=r"teachers\.sage changed"):
        train_students(request_of(again, tmp_path / "runs", student("a", objective=[KD])))


def test_a_diverging_student_does_not_stop_the_next(toy_cache: Cache, tmp_path: Path) -> None:
    wild = student("wild", optimizer="sgd", learning_rate=1000.0, epochs=9)
    events: list[Event] = []
    summary = train_students(request_of(toy_cache, tmp_path, wild, student("calm")), report=events.append)
    assert [record.student for record in summary.records] == ["calm"]
    assert [event.student for event in events if isinstance(event, StudentFailed)] == ["wild"]
    assert summary.exit_code == 2


def test_a_failing_model_of_ones_own_does_not_stop_the_next(toy_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(BROKEN)
    own = student("own", architecture=f"{tmp_path}/m.py:broken", options={}, batch_size=50)
    summary = train_students(request_of(toy_cache, tmp_path / "runs", own, student("calm")))
    assert [record.student for record in summary.records] == ["calm"]
    assert summary.errors["own"].found == f"IndexError: too few rows  ({tmp_path}/m.py:9)"
    assert summary.exit_code == 1


def test_a_failed_student_is_tried_again_by_a_corrected_job(toy_cache: Cache, tmp_path: Path) -> None:
    wild = {"optimizer": "sgd", "epochs": 9}
    train_students(request_of(toy_cache, tmp_path, student("a", learning_rate=1000.0, **wild)))
    train_students(request_of(toy_cache, tmp_path, student("a", learning_rate=0.01, **wild)))
    record = read_record(tmp_path / "a")
    assert record is not None
    assert (record.status, record.epochs) == ("finished", 9)


def test_a_failed_student_that_is_tried_with_another_job_keeps_no_steps_of_the_old_one(
    toy_cache: Cache, tmp_path: Path
) -> None:
    train_students(request_of(toy_cache, tmp_path, student(learning_rate=900.0, optimizer="sgd", epochs=5)))
    (tmp_path / "a/steps").mkdir(exist_ok=True)
    (tmp_path / "a/steps/00004.parquet").touch()
    train_students(request_of(toy_cache, tmp_path, student(epochs=2)))
    assert sorted(path.name for path in (tmp_path / "a/steps").glob("*.parquet")) == ["00001.parquet", "00002.parquet"]


def test_a_kill_between_the_record_and_the_checkpoints_end_leaves_no_checkpoint(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student_train.run_files.folder.delete_checkpoint", lambda folder: None)
    train_students(request_of(toy_cache, tmp_path, student()))
    monkeypatch.undo()
    assert (tmp_path / "a/checkpoint.json").exists()
    train_students(request_of(toy_cache, tmp_path, student()))
    assert not list((tmp_path / "a").glob("checkpoint*"))


def test_a_model_of_ones_own_is_trained_and_loaded(toy_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(BROKEN)
    own = f"{tmp_path}/m.py:whole"
    train_students(request_of(toy_cache, tmp_path / "runs", student(architecture=own, options={})))
    assert load_student(tmp_path / "runs/a", own).network[1].out_features == 4


def test_a_changed_model_of_ones_own_is_refused_for_a_finished_student(toy_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(BROKEN)
    request = request_of(toy_cache, tmp_path / "runs", student(architecture=f"{tmp_path}/m.py:whole", options={}))
    train_students(request)
    (tmp_path / "m.py").write_text(BROKEN.replace("36", "9 * 4"))
    with pytest.raises(StaleCache, match="architecture_code changed"):
        train_students(request)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"objective": [KD | {"teacher": "oracle"}]}, NotInCache),
        ({"objective": [HINT | {"feature": "poled"}]}, NotInCache),
        ({"objective": [HINT | {"student_layer": "network.hiden1"}]}, BadRequest),
        ({"options": {"hiden": [4]}}, BadRequest),
        ({"mean": (0.1, 0.2)}, BadRequest),
        ({"warmup_steps": 1000}, BadRequest),
        ({"epochs": None, "max_steps": 6, "warmup_epochs": 1.5}, BadRequest),
        ({"evaluate_every_steps": 19}, BadRequest),
        ({"best_by": "agreement"}, BadRequest),  # with no teacher
        ({"best_by": "macro_f1"}, BadRequest),
        ({"schedule": "wsd", "decay_share": 0.9, "warmup_epochs": 1.0}, BadRequest),
    ],
)
def test_a_mistake_in_the_last_student_is_found_before_the_first_is_trained(
    toy_cache: Cache, tmp_path: Path, wrong: dict[str, Any], error: type[StillroomError]
) -> None:
    with pytest.raises(error):
        train_students(request_of(toy_cache, tmp_path / "runs", student("a"), student("b", **wrong)))
    assert not (tmp_path / "runs").exists()


def test_two_students_of_one_name_are_refused(toy_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="two students have one name"):
        train_students(request_of(toy_cache, tmp_path, student("a"), student("a", seed=1)))


def test_a_half_built_cache_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe(no_teacher=frozenset({2})))
    with pytest.raises(IncompleteCache, match="half built"):
        train_students(request_of(cache, tmp_path / "runs", student(objective=[KD])))


def test_a_half_built_cache_trains_in_part_when_the_job_allows_it(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe(no_teacher=frozenset({2})))
    summary = train_students(request_of(cache, tmp_path / "runs", student(objective=[KD]), allow_partial=True))
    assert summary.records[0].identity["train_rows"].startswith("152, ")


def test_a_partial_student_does_not_train_on_less_because_of_its_neighbour(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe(no_teacher=frozenset({2})))
    students = student("taught", objective=[KD]), student("labelled")
    summary = train_students(request_of(cache, tmp_path / "runs", *students, allow_partial=True))
    assert [r.identity["train_rows"].split(",")[0] for r in summary.records] == ["152", "192"]


def test_rows_without_labels_are_taught_and_measured_by_agreement(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe(unlabelled=frozenset(range(240))))
    options = student(objective=[KD], epochs=8, patience_epochs=3)
    record = train_students(request_of(cache, tmp_path / "runs", options)).records[0]
    assert record.accuracy is None
    assert record.agreement is not None
    assert record.agreement > 0.9


def test_an_interrupted_job_goes_on_where_it_was(toy_cache: Cache, tmp_path: Path) -> None:
    request = request_of(toy_cache, tmp_path, student("a"), student("b"))
    with pytest.raises(Interrupted) as interruption:
        train_students(request, stop=stop_after(10 + 12))
    assert interruption.value.exit_code == 130
    events: list[Event] = []
    train_students(request, report=events.append)
    started = {event.student: event.done_steps for event in events if isinstance(event, StudentStarted)}
    assert started == {"a": 10, "b": 10}


def test_two_commands_do_not_train_one_student_at_a_time(toy_cache: Cache, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a", {}).locked():
        summary = train_students(request_of(toy_cache, tmp_path, student("a"), student("b")))
    assert isinstance(summary.errors["a"], TryAgain)
    assert (summary.exit_code, [record.student for record in summary.records]) == (75, ["b"])


def test_a_gpu_that_is_not_there_is_refused(toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BadRequest, match="no CUDA device"):
        train_students(replace(request_of(toy_cache, tmp_path), device="cuda"))


def test_a_disk_without_locks_is_told_and_trained_on(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    told: list[Event] = []
    done = train_students(request_of(toy_cache, tmp_path, student("a")), report=told.append)
    assert done.exit_code == 0
    assert [event.folder for event in told if isinstance(event, RunsNotLocked)] == [str(tmp_path)]


def test_events_come_in_the_order_that_is_written_down(toy_cache: Cache, tmp_path: Path) -> None:
    train_students(request_of(toy_cache, tmp_path, student("done", epochs=1)))
    events: list[Event] = []
    students = [student("done", epochs=1), student("short", epochs=1), student("long", epochs=2)]
    train_students(request_of(toy_cache, tmp_path, *students), report=events.append)
    told = [type(event).__name__ for event in events if not isinstance(event, Progress)]
    assert told[:3] == ["StudentSkipped", "MemoryProjected", "FeedChosen"]
    shards = told.count("Loading")
    assert told[3:] == [
        *["Loading"] * shards,
        *["StudentStarted", "StudentStarted", "StackingChosen", "PassStarted"],
        *["EpochDone", "EpochDone", "StudentFinished", "EpochDone", "StudentFinished", "PassDone"],
    ]


def test_a_teacher_near_chance_is_told_before_the_first_step(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = [Standing(*where, PLAIN, None, "accuracy 9%", True) for where in toy_cache.catalogue().teachers]
    monkeypatch.setattr("student_train.preparing.prepare.standings", lambda *_: weak)
    told: list[Event] = []
    students = [student("a", objective=[LABELS]), student("b", objective=[KD]), student("c", objective=[KD])]
    train_students(request_of(toy_cache, tmp_path, *students), report=told.append)
    warnings = [event.warning for event in told if isinstance(event, TeacherNearChance)]
    assert [warning.partition(":")[0] for warning in warnings] == ["warning"]
    assert isinstance(told[0], TeacherNearChance)
