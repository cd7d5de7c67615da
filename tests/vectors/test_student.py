"""Students whose answer is a vector, from start to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from storage.cache import Cache
from storage.errors import BadRequest
from student_train.comparing.compared import compare_settings
from student_train.comparing.runs import gather_runs
from student_train.losses.on_vectors import infonce
from student_train.report import write_report
from student_train.run_files.predictions import read_predictions
from student_train.run_files.records import RunRecord, read_record
from student_train.running.train import train_students
from student_train.students import load_student
from tests.conftest import Program
from tests.vectors.toys import EVERY_LOSS, WIDTH, bag_teacher, request, vector_cache, vector_student


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return vector_cache(tmp_path_factory.mktemp("vectors"), count=200)


@pytest.fixture(scope="module")
def runs(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students: one of the cosine alone, one of all losses on vectors."""
    folder = tmp_path_factory.mktemp("runs")
    summary = train_students(
        request(cache, folder, vector_student(), vector_student("all", objective=EVERY_LOSS, epochs=2))
    )
    assert not summary.errors
    return folder


def record(runs: Path, name: str) -> RunRecord:
    found = read_record(runs / name)
    assert found is not None
    return found


def test_a_student_of_vectors_learns_to_lay_rows_as_its_teacher_does(runs: Path) -> None:
    small = record(runs, "small")
    assert (small.spearman or 0) > 0.6
    assert (small.cosine or 0) > 0.6
    assert 0.1 < (small.retrieval or 0) <= 1
    assert (small.accuracy, small.cross_entropy, small.agreement, small.kl) == (None, None, None, None)


def test_its_figures_are_those_of_the_vectors_that_it_predicts(cache: Cache, runs: Path) -> None:
    table = read_predictions(runs / "small")
    assert table is not None
    vectors_ND = np.array(table.table["vector"].to_list(), np.float32)
    assert vectors_ND.shape == (table.num_rows, WIDTH)
    shards = [
        cache.read_targets("texts", "bag", shard, names=["vectors"]) for shard in sorted(cache.committed("texts"))
    ]
    teacher_ND = np.concatenate([shard["vectors"] for shard in shards])[table.table["row"].to_numpy()]
    lengths_N = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(teacher_ND, axis=1)
    cosine_N = (vectors_ND * teacher_ND).sum(1) / lengths_N
    assert record(runs, "small").cosine == pytest.approx(cosine_N.mean(), abs=1e-5)


def test_vectors_of_texts_are_predicted_into_a_file(runs: Path, tmp_path: Path, program: Program) -> None:
    (tmp_path / "new.txt").write_text("the fish and\nfowl\n\n")
    refused = program("student", "eval", runs / "small", tmp_path / "new.txt")
    assert (refused.code, "which are measured against a teacher's" in refused.err) == (2, True)
    refused = program("student", "predict", runs / "small", tmp_path / "new.txt")
    assert (refused.code, f"{WIDTH} numbers of each sample" in refused.err) == (2, True)
    ended = program("student", "predict", runs / "small", tmp_path / "new.txt", "-o", tmp_path / "said.parquet")
    said = pl.read_parquet(tmp_path / "said.parquet")
    names = [f"vector_{place + 1}" for place in range(WIDTH)]
    assert (ended.code, said.columns) == (3, ["sample_id", *names, "error"])
    student = load_student(runs / "small").eval()
    with torch.inference_mode():
        expected_ND = student(student.prepare(["the fish and", "fowl"])).numpy()
    np.testing.assert_allclose(said[:2].select(names).to_numpy(), expected_ND, atol=1e-6)
    assert said[2].select(names).row(0) == (None,) * WIDTH  # an empty line, with its reason


def test_a_student_that_is_loaded_gives_vectors_of_texts(runs: Path) -> None:
    student = load_student(runs / "small").eval()
    with torch.inference_mode():
        assert student(student.prepare(["the fish and", "fowl"])).shape == (2, WIDTH)


def test_runs_are_compared_and_shown_by_their_spearman(cache: Cache, runs: Path, tmp_path: Path) -> None:
    (found,) = compare_settings(gather_runs(runs))
    assert (found.gain.column, found.best and found.best.name) == ("spearman", "small")
    write_report(runs, tmp_path / "report.html", cache.url)
    assert "Spearman" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"objective": [{"loss": "kd", "teacher": "bag"}]}, "losses on classes"),
        ({"objective": [{"loss": "labels"}]}, "losses on classes"),
        ({"best_by": "accuracy"}, "best by accuracy"),
    ],
    ids=["kd", "labels", "accuracy"],
)
def test_what_makes_no_sense_of_a_vector_is_refused(cache: Cache, tmp_path: Path, options: Any, what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        train_students(request(cache, tmp_path, vector_student(**options)))


def test_infonce_is_the_log_of_how_many_rows_there_are_where_all_are_alike() -> None:
    same_BD = torch.ones(4, 3)
    assert infonce(same_BD, same_BD, temperature=0.1).item() == pytest.approx(math.log(4))
    apart_BD = torch.eye(3)
    own = math.exp(1 / 0.5)
    assert infonce(2 * apart_BD, apart_BD, temperature=0.5).item() == pytest.approx(-math.log(own / (own + 2)))


def test_a_student_of_two_teachers_has_figures_beside_each(program: Program, tmp_path: Path) -> None:
    other = bag_teacher("other").replace("bag.py:build", "bag.py:turned")
    cache = vector_cache(tmp_path, bag_teacher(), other)
    terms = [{"loss": "vector_cosine", "teacher": "bag"}, {"loss": "vector_cosine", "teacher": "other", "weight": 0.1}]
    asked = vector_student(objective=terms, epochs=4)
    (record,) = train_students(request(cache, tmp_path / "runs", asked)).records
    assert list(record.by_teacher) == ["bag", "other"]
    first, second = record.by_teacher.values()
    assert (first.cosine, first.spearman, first.retrieval) == (record.cosine, record.spearman, record.retrieval)
    assert first.kl is first.agreement is second.kl is None
    assert second.cosine is not None
    # its vectors are the others', turned round, and lie to each other as those do
    assert second.cosine == pytest.approx(-1 * (first.cosine or 0), abs=1e-5)
    assert second.spearman == pytest.approx(first.spearman or 0, abs=1e-6)
    told = program("student", "compare", tmp_path / "runs")
    assert "by teacher:" in told.out
    assert "teacher other" in told.out
    assert "beside the first" not in told.out
    (found,) = json.loads(program("student", "compare", tmp_path / "runs", "--json").out)["compared"]
    means = found["settings"][0]["by_teacher"]
    assert means["other"]["means"] == {name: getattr(second, name) for name in ("spearman", "cosine", "retrieval")}
    seen = json.loads(program("student", "eval", tmp_path / "runs/small", "texts/validation", "--json").out)
    assert seen["figures"]["by_teacher"]["other"]["cosine"] == pytest.approx(second.cosine, abs=1e-5)
    ended = program("student", "report", tmp_path / "runs", "--out", tmp_path / "page.html")
    assert ended.code == 0, ended.err
    assert f'data-value="{second.cosine}"' in (tmp_path / "page.html").read_text()
