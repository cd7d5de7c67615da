"""Students of rows with one class each, and of several teachers: how often they agree with each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from jobs.show.evaluation import _lines
from storage.cache import Cache
from student_train.run_files.predictions import read_predictions
from student_train.running.train import train_students
from student_train.using.answering import load_answerer
from student_train.using.evaluating.evaluate import evaluate_rows, find_rows
from tests.student_train.toys import KD, LABELS, Recipe, add_teacher, request_of, student, write_cache

BOTH = [LABELS, KD, KD | {"teacher": "fool", "weight": 0.2}]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    made = write_cache(tmp_path_factory.mktemp("two") / "cache", Recipe())
    add_teacher(made, Recipe(teacher_name="fool", sureness=-1.0))
    return made


@pytest.mark.parametrize("stacking", ["never", "always"])
def test_a_student_has_the_agreement_with_each_teacher(cache: Cache, tmp_path: Path, stacking: str) -> None:
    asked = request_of(cache, tmp_path, student("a", objective=BOTH), student("b", objective=BOTH, seed=1))
    asked = replace(asked, fleet=asked.fleet.model_copy(update={"stacking": stacking}))
    for record in train_students(asked).records:
        predictions = read_predictions(tmp_path / record.student)
        assert predictions is not None
        own = predictions.table.select("row", "top")
        for name in ("sage", "fool"):
            said = cache.samples().of("toy", ["sage", "fool"]).select("row", f"{name}_top")
            both = own.join(said, on="row")
            share = both.select((pl.col("top") == pl.col(f"{name}_top")).mean()).item()
            assert record.by_teacher[name].agreement == pytest.approx(share)
            assert record.by_teacher[name].kl is None
        assert record.agreement == record.by_teacher["sage"].agreement
        assert record.by_teacher["fool"].agreement < record.agreement


def test_a_student_is_evaluated_beside_each_teacher_that_has_answered_the_rows(cache: Cache, tmp_path: Path) -> None:
    (record,) = train_students(request_of(cache, tmp_path, student("a", objective=[LABELS, KD]))).records
    assert not record.by_teacher  # it learned from one
    answerer = load_answerer(tmp_path / "a", device="cpu")
    held = str(record.identity["data"]["validation"])
    rows = find_rows(answerer, held, cache=None, teacher=None, labels=None)
    found = evaluate_rows(answerer, rows)
    assert found.teacher == "sage"
    assert found.figures.agreement == found.figures.by_teacher["sage"].agreement
    predictions = read_predictions(tmp_path / "a")
    assert predictions is not None
    said = cache.samples().of("toy", ["fool"]).select("row", "fool_top")
    both = predictions.table.select("row", "top").join(said, on="row")
    share = both.select((pl.col("top") == pl.col("fool_top")).mean()).item()
    assert found.figures.by_teacher["fool"].agreement == pytest.approx(share)
    lines = dict(_lines(found))
    assert lines["agreement with fool"] == f"{100 * share:.2f} %"
    assert list(lines).index("agreement with sage") < list(lines).index("agreement with fool")
    one = evaluate_rows(answerer, find_rows(answerer, held, cache=None, teacher="fool", labels=None))
    assert (one.teacher, one.figures.by_teacher) == ("fool", {})
    assert one.figures.agreement == pytest.approx(share)
