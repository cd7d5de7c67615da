from __future__ import annotations

from pathlib import Path

import pytest

from storage.cache import Cache
from storage.errors import CorruptObject, Interrupted, MissingSource
from student_train.run_files.comparison import COMPARISON, compare_runs
from student_train.run_files.records import read_record
from student_train.running.train import train_students
from tests.student_train.running.test_loop import stop_after
from tests.student_train.toys import KD, request_of, student


def test_runs_are_compared_best_first(toy_cache: Cache, tmp_path: Path) -> None:
    train_students(
        request_of(toy_cache, tmp_path, student("short", epochs=1), student("long", objective=[KD], epochs=8))
    )
    table = compare_runs(tmp_path)
    assert table.columns == list(COMPARISON)
    assert table["student"].to_list() == ["long", "short"]
    assert table["status"].to_list() == ["finished", "finished"]
    assert table["parameters"].to_list() == [660, 660]
    assert table["agreement"].is_null().to_list() == [False, True]


def test_an_unfinished_run_has_the_figures_of_its_last_whole_epoch(toy_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train_students(request_of(toy_cache, tmp_path), stop=stop_after(10 + 6 + 2 + 3))
    row = compare_runs(tmp_path).row(0, named=True)
    assert (row["status"], row["epochs"], row["architecture"], row["accuracy"] is None) == (
        "unfinished",
        1,
        "mlp",
        False,
    )


def test_a_failed_run_says_why_in_one_line(toy_cache: Cache, tmp_path: Path) -> None:
    train_students(request_of(toy_cache, tmp_path, student(optimizer="sgd", learning_rate=1000.0, epochs=9)))
    row = compare_runs(tmp_path).row(0, named=True)
    assert (row["status"], row["error"]) == ("failed", "DivergedLoss: student a diverged in epoch 2")


@pytest.mark.parametrize("folder", ["", "nothing"])
def test_a_folder_without_runs_is_named(tmp_path: Path, folder: str) -> None:
    with pytest.raises(MissingSource, match=f"no runs in {tmp_path / folder}"):
        compare_runs(tmp_path / folder)


def test_a_damaged_record_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/run.json").write_text('{"student": "a"')
    with pytest.raises(CorruptObject, match="is not the record of a run"):
        read_record(tmp_path / "a")


def test_a_record_comes_back_as_it_was_written(toy_cache: Cache, tmp_path: Path) -> None:
    record = train_students(request_of(toy_cache, tmp_path)).records[0]
    assert read_record(tmp_path / "a") == record
