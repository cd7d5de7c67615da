from __future__ import annotations

from pathlib import Path

import pytest

from jobs.show.train_progress import TrainProgress
from student_train.running import events
from student_train.running.train import train_students
from tests.conftest import Program
from tests.student_train.toys import KD, LABELS, Recipe, request_of, student, write_cache
from tests.teacher_cache.toys import Silent

JOB = """
cache = "cache"
runs = "runs"
train = "toy/train"
validation = "toy/validation"
[[student]]
name = "s"
architecture = "mlp"
epochs = 2
objective = [{ loss = "labels" }, { loss = "kd", teacher = "sage", weight = %s }]
"""


@pytest.mark.parametrize(("weight", "notes"), [("1e-6", 1), ("1.0", 0)])
def test_a_term_that_teaches_next_to_nothing_is_told_once(
    tmp_path: Path, program: Program, weight: str, notes: int
) -> None:
    write_cache(tmp_path / "cache", Recipe())
    (tmp_path / "job.toml").write_text(JOB % weight)
    ended = program("student", "train", tmp_path / "job.toml")
    assert ended.code == 0, ended.err
    told = " ".join(ended.err.split())
    assert told.count("s learns next to nothing from kd:sage") == told.count("raise its weight, or drop it") == notes


def test_who_says_what_its_teacher_says_is_not_told_to_raise_the_weight(tmp_path: Path) -> None:
    cache, told = write_cache(tmp_path / "cache", Recipe()), list[events.Event]()
    train_students(request_of(cache, tmp_path / "runs", student("s", objective=[LABELS, KD])), report=told.append)
    (first, *_) = (event for event in told if isinstance(event, events.EpochDone))
    assert first.first_losses.keys() == first.metrics.terms.keys()
    assert first.first_losses != first.metrics.terms  # which are means over the epoch
    alike = first.first_losses | {"kd:sage": 1e-7}
    shares = {"labels": 1.0, "kd:sage": 1e-5}
    watch = Silent()
    watch.begin("s", 1)
    metrics = first.metrics.model_copy(update={"shares": shares})
    TrainProgress(watch).report(events.EpochDone("s", metrics, alike))
    assert watch.notes == [
        "note: s learns next to nothing from kd:sage: 0.00% of the gradient in the first step, for its loss is 1e-07 "
        "there, as of one that says the same already"
    ]


HALVED = """
[halving]
first_epochs = 1
factor = 2
[[student]]
name = "m"
architecture = "mlp"
epochs = 2
objective = [{ loss = "labels" }]
[student.sweep]
seed = [0, 1]
"""


def test_who_was_set_aside_is_no_failure(tmp_path: Path, program: Program) -> None:
    write_cache(tmp_path / "cache", Recipe())
    (tmp_path / "job.toml").write_text(JOB.partition("[[student]]")[0] + HALVED)
    ended = program("student", "train", tmp_path / "job.toml")
    assert ended.code == 0, ended.err
    assert "1 stopped" in ended.out
    assert "m-seed_0 stopped: set aside after 1 epoch" in ended.out
    assert "failed" not in ended.out
    assert "best accuracy" in ended.err


def test_runs_that_are_a_file_are_a_bad_request(tmp_path: Path, program: Program) -> None:
    write_cache(tmp_path / "cache", Recipe())
    (tmp_path / "runs").write_text("")
    (tmp_path / "job.toml").write_text(JOB % "1.0")
    ended = program("student", "train", tmp_path / "job.toml")
    assert (ended.code, "runs is no folder" in ended.err) == (2, True), ended.err


def test_a_pass_of_one_student_tells_that_students_figures(tmp_path: Path, program: Program) -> None:
    write_cache(tmp_path / "cache", Recipe())
    fleet = HALVED.replace("[halving]\nfirst_epochs = 1\nfactor = 2\n", "at_once = 1\n")
    (tmp_path / "job.toml").write_text(JOB.partition("[[student]]")[0] + fleet)
    ended = program("student", "train", tmp_path / "job.toml")
    assert (ended.code, ended.err.count(" accuracy "), "best accuracy" in ended.err) == (0, 2, False), ended.err


@pytest.mark.parametrize(("batch_size", "notes"), [(193, 1), (192, 0)])
def test_a_batch_of_more_than_all_rows_is_told_once(
    tmp_path: Path, program: Program, batch_size: int, notes: int
) -> None:
    write_cache(tmp_path / "cache", Recipe())
    sweep = f"batch_size = {batch_size}\n[student.sweep]\nseed = [0, 1]\n"
    (tmp_path / "job.toml").write_text(JOB % "1.0" + sweep)
    ended = program("student", "train", tmp_path / "job.toml")
    assert ended.code == 0, ended.err
    told = "s-seed_0 and 1 more: batch_size is more than the 192 rows; an epoch is one step"
    assert " ".join(ended.err.split()).count(told) == notes, ended.err


SWEPT = """
[student.sweep]
learning_rate = [0.001, 0.01]
options.hidden = [[32], [32, 32]]
seed = [0, 1]
"""


def test_a_dry_run_has_a_line_for_each_student_of_a_sweep(tmp_path: Path, program: Program) -> None:
    write_cache(tmp_path / "cache", Recipe())
    (tmp_path / "job.toml").write_text(JOB % "1.0" + SWEPT)
    ended = program("student", "train", tmp_path / "job.toml", "--dry-run")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if line.split()[1:] == ["train", "0", "2"]]
    assert len(set(names)) == 8
    assert "s-learning_rate_0.001-hidden_32_32-seed_0" in names
    assert sum("rows to train on" in line for line in lines) == 1
