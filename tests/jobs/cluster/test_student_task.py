"""What a worker is sent, and what it tells while it trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster import student_work as student_task
from jobs.cluster.student_work import Relay, as_json, beacon
from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from storage.errors import BadRequest, StillroomError
from student_train.run_files.records import RunRecord
from student_train.running.events import (
    PassDone,
    PassStarted,
    Progress,
    StackTakenApart,
    StudentFailed,
    StudentSkipped,
    StudentStarted,
)

JOBS = sorted((Path(__file__).parents[3] / "jobs").glob("*.students.toml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_arrives_as_it_was_sent(path: Path) -> None:
    job = read_job(path, StudentJob)
    assert StudentJob.model_validate_json(as_json(job)) == job


def test_infinity_among_a_users_own_options_arrives(tmp_path: Path) -> None:
    text = JOBS[0].read_text() + '\n[[student]]\nname = "own"\narchitecture = "m.py:f"\noptions = { limit = inf }\n'
    (tmp_path / "job.toml").write_text(text + 'objective = [{ loss = "labels" }]\n')
    job = read_job(tmp_path / "job.toml", StudentJob)
    assert StudentJob.model_validate_json(as_json(job)).student[-1].options == {"limit": math.inf}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    return []


def relay(sent: list[dict[str, Any]], **steps: tuple[int, int]) -> Relay:
    return Relay("group 1", steps, sent.append)


def started(name: str) -> StudentStarted:
    return StudentStarted(name, parameters=1, total_steps=0, done_steps=0)


def progress(done: int, total: int) -> Progress:
    return Progress("2 students", epoch=1, epochs=2, done_steps=done, total_steps=total, loss=0.5, rows_per_s=9.0)


def test_steps_are_counted_over_the_passes_of_a_group(sent: list[dict[str, Any]]) -> None:
    told = relay(sent, a=(0, 10), b=(4, 10), c=(3, 20))  # b and c go on from checkpoints
    counts = [told.message()["done"]]
    for event in [
        started("a"),
        started("b"),
        PassStarted("2 students", 20, 4),
        progress(15, 20),
        PassDone(),
        started("c"),
        PassStarted("c", 20, 3),
        progress(12, 20),
        PassDone(),
    ]:
        told.report(event)
        counts.append(told.message()["done"])
    assert counts == [7, 7, 3, 7, 18, 23, 20, 23, 32, 40]


def test_students_that_finished_before_a_workers_death_count_as_done(sent: list[dict[str, Any]]) -> None:
    told = relay(sent, a=(0, 10), b=(0, 10))
    record = RunRecord(student="a", status="finished", architecture="mlp", device="cpu", torch_version="2", identity={})
    told.report(StudentSkipped(record))
    told.report(StudentFailed("b", StillroomError("no such luck")))
    message = told.message()
    assert message["done"] == 20
    assert message["notes"] == ["a: finished before, skipped", "StillroomError: no such luck"]


def test_what_happens_within_a_second_is_one_message(
    sent: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = relay(sent, a=(0, 1000))
    told.report(PassStarted("a", 1000, 0))
    for step in range(1000):
        told.report(progress(step, 1000))
    told.report(StackTakenApart("a and 3 like it", 2, "no memory"))
    assert sent == []
    monkeypatch.setattr(student_task, "TELL_EVERY_S", 0.0)
    told.report(progress(1000, 1000))
    assert sent == [
        {
            "group": "group 1",
            "done": 1000,
            "detail": "epoch 1/2 loss 0.5",
            "notes": ["a and 3 like it: taken apart into 2, same rows again (no memory)"],
        }
    ]


def test_a_worker_that_sees_another_runs_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="does not see the runs folder"):
        student_task._check_shared(tmp_path, "0a1b")
    beacon(tmp_path, "0a1b").touch()
    student_task._check_shared(tmp_path, "0a1b")
