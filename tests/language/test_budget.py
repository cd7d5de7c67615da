"""Which of a language model's weights are kept, and which students go on: by cross-entropy where nobody says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from jobs.show.train_progress import TrainProgress
from storage.cache import Cache
from storage.errors import BadRequest
from student_train.options.sections import FleetOptions
from student_train.preparing.dry_run import dry_run
from student_train.preparing.prepare import prepare
from student_train.preparing.request import Request
from student_train.run_files.records import RunRecord
from student_train.running import events
from student_train.running.train import train_students
from tests.conftest import Program
from tests.language.toys import counting_cache, request, small_gpt

# Steps that become far too large: figures are best before the end, on whatever machine.
RESTLESS: dict[str, Any] = {
    "epochs": None,
    "max_steps": 24,
    "evaluate_every_steps": 2,
    "learning_rate": 3.0,
    "warmup_steps": 24,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return counting_cache(tmp_path_factory.mktemp("tokens"))


def train(cache: Cache, runs: Path, **options: Any) -> tuple[RunRecord, pl.DataFrame]:
    (record,) = train_students(request(cache, runs, small_gpt(**RESTLESS | options))).records
    return record, pl.read_parquet(runs / "gpt/metrics.parquet")


@pytest.mark.parametrize(
    ("asked", "figure"),
    [
        ({"patience_evaluations": 50}, "cross_entropy"),
        ({"patience_epochs": 50}, "cross_entropy"),
        ({"best_by": "kl"}, "kl"),
    ],
)
def test_the_best_of_tokens_is_that_of_least_nats(
    cache: Cache, tmp_path: Path, asked: dict[str, Any], figure: str
) -> None:
    record, metrics = train(cache, tmp_path, **asked)
    best = metrics.sort(figure).row(0, named=True)
    assert (record.best_by, record.step, getattr(record, figure)) == (figure, best["step"], best[figure])
    assert best["step"] < 24


def test_of_labels_alone_the_one_teacher_of_the_cache_is_who_they_are_measured_against(
    cache: Cache, tmp_path: Path
) -> None:
    record, _ = train(cache, tmp_path, best_by="agreement", objective=[{"loss": "labels"}])
    assert record.best_by == "agreement"


def test_students_of_tokens_are_set_aside_by_cross_entropy(cache: Cache, tmp_path: Path) -> None:
    students = [small_gpt(f"s{i}", epochs=2, learning_rate=rate) for i, rate in enumerate((0.0001, 0.1))]
    asked = request(cache, tmp_path, *students)
    fleet = FleetOptions.model_validate({"halving": {"first_epochs": 1, "factor": 2}, "stacking": "never"})
    records = train_students(Request(asked.cache, asked.runs, asked.data, asked.students, "cpu", fleet)).records
    assert [record.status for record in records] == ["stopped", "finished"]
    assert "cross_entropy" in str(records[0].error)
    assert records[0].halving == {"first_epochs": 1, "factor": 2, "metric": "cross_entropy"}


def test_steps_that_end_before_students_are_compared_are_refused(cache: Cache, tmp_path: Path) -> None:
    asked = request(cache, tmp_path, small_gpt("a"), small_gpt("b", epochs=None, max_steps=3))
    fleet = FleetOptions.model_validate({"halving": {"first_epochs": 1}})
    with pytest.raises(BadRequest, match="student b ends before"):
        train_students(Request(asked.cache, asked.runs, asked.data, asked.students, "cpu", fleet))


def test_a_budget_in_steps_is_told_in_steps(cache: Cache, tmp_path: Path, program: Program) -> None:
    """An epoch is `each` steps; the run is cut short of two of them."""
    (each,) = (student.steps_an_epoch for student in prepare(request(cache, tmp_path / "x", small_gpt())))
    asked = request(cache, tmp_path / "runs", small_gpt(epochs=None, max_steps=each + 1))
    (foreseen,) = dry_run(asked).students
    assert (foreseen.steps, foreseen.epochs, foreseen.by_steps) == (each + 1, round((each + 1) / each, 3), True)
    told: list[events.Event] = []
    watch = Told()
    progress = TrainProgress(watch)

    def report(event: events.Event) -> None:
        told.append(event)
        progress.report(event)

    record = train_students(asked, report=report).records[0]
    assert (record.steps, record.epochs_done) == (each + 1, pytest.approx((each + 1) / each))
    progress.report(events.Progress("gpt", 2, 2, each, each + 1, 0.5, 9.0, each, each + 1, 1.0))
    assert watch.details[-1] == f"step {each}/{each + 1}, 1 epochs, loss 0.5"
    (after,) = (line for line in watch.details if line.startswith(f"after {each} steps"))
    assert "perplexity" in after
    assert not any(line.startswith("epoch") for line in watch.details)
    (student,) = json.loads(program("student", "compare", tmp_path / "runs", "--json").out)["students"]
    assert student["epochs_done"] == record.epochs_done


class Told:
    """Keeps what is said beside the bar. A `Watcher`."""

    def __init__(self) -> None:
        self.details: list[str] = []

    def begin(self, name: str, total: int | None, done: int = 0, unit: str | None = None) -> None: ...

    def advance(self, count: int, detail: str = "") -> None:
        self.details.append(detail)

    def detail(self, text: str) -> None:
        self.details.append(text)

    def note(self, text: str) -> None: ...

    def complete(self) -> None: ...
