"""Which of a language model's weights are kept, and which students go on: by cross-entropy where nobody says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from storage.cache import Cache
from storage.errors import BadRequest
from student_train.options.sections import FleetOptions
from student_train.preparing.request import Request
from student_train.run_files.records import RunRecord
from student_train.running.train import train_students
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
