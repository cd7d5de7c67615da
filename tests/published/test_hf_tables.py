"""Folders of `datasets` with numbers and categories: the rows of the same table, and the way to a student in use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from storage.errors import MissingSource
from tests.conftest import Program
from tests.published.toys import read_all, save_splits, save_to_disk, source
from tests.tables.toys import CACHE_JOB, STUDENT_JOB, customers, write_csv

CLASSES = ["yes", "no"]  # not in the order of the alphabet
COLUMNS = {"numeric": ["age", "income"], "categorical": ["city", "plan"], "label": "churn"}


def table(rows: list[dict[str, str]], classes: list[str]) -> pa.Table:
    """Return customers with the types that a table of `datasets` has."""
    columns = {
        "age": pa.array([float(row["age"]) if row["age"] else None for row in rows], pa.float64()),
        "income": pa.array([float(row["income"]) for row in rows], pa.float64()),
        "city": pa.array([row["city"] or None for row in rows], pa.string()),
        "plan": pa.array([int(row["plan"]) for row in rows], pa.int64()),
        "churn": pa.array([classes.index(row["churn"]) for row in rows], pa.int64()),
    }
    return pa.table(columns)


def test_cells_are_those_of_the_same_rows_in_csv_and_classes_those_of_their_names(tmp_path: Path) -> None:
    rows = customers(40)
    save_to_disk(tmp_path / "saved", table(rows, CLASSES), {"churn": CLASSES}, files=2, batch=7)
    write_csv(tmp_path / "rows.csv", rows)
    saved = source(tmp_path, kind="hf_folder", path="saved", **COLUMNS)
    plain = source(tmp_path, kind="table", path="rows.csv", **COLUMNS)
    assert saved.class_names() == CLASSES
    assert np.array_equal([s.payload for s in read_all(saved)], [s.payload for s in read_all(plain)])
    assert [CLASSES[s.label] for s in read_all(saved)] == [row["churn"] for row in rows]
    _, (second, count) = saved.files().select("file", "rows").iter_rows()
    part = [s.payload for s in saved.read(second, 3, count - 5)]
    assert np.array_equal(part, [s.payload for s in read_all(saved)][23 : 20 + count - 2])


def test_numbers_that_nobody_named_are_told_with_what_to_write(tmp_path: Path) -> None:
    numbers = pa.table({"a": [0.5], "b": [1], "y": [1]})
    save_to_disk(tmp_path / "p", numbers, {"y": CLASSES})
    with pytest.raises(MissingSource) as refused:
        source(tmp_path, kind="hf_folder", path="p").files()
    assert refused.value.do == 'of numbers: numeric = ["a", "b"], label = "y"'
    assert len(read_all(source(tmp_path, kind="hf_folder", path="p", numeric=["a", "b"], label="y"))) == 1


def test_from_a_saved_table_to_a_student_in_use(tmp_path: Path, program: Program) -> None:
    fresh, others = customers(100, seed=1), CLASSES[::-1]
    save_splits(
        tmp_path / "saved",
        {
            "train": lambda f: save_to_disk(f, table(customers(300), CLASSES), {"churn": CLASSES}),
            "test": lambda f: save_to_disk(f, table(fresh, others), {"churn": others}),
        },
    )
    dataset = CACHE_JOB.partition("[[teacher]]")[0]
    dataset = dataset.replace('"table"', '"hf_folder"').replace('"customers.csv"', '"saved"\nsplit = "train"')
    (tmp_path / "cache.toml").write_text(dataset.replace(', "member"', "") + '[cluster]\nkind = "inline"\n')
    labels = STUDENT_JOB.partition('loss = "kd"')[0] + 'loss = "labels"\n'
    (tmp_path / "students.toml").write_text(labels)
    assert program("cache", "build", tmp_path / "cache.toml").code == 0
    assert program("student", "train", tmp_path / "students.toml").code == 0
    run = tmp_path / "runs/small"
    accuracy = json.loads(program("student", "eval", run, tmp_path / "saved/test", "--json").out)["figures"]["accuracy"]
    assert accuracy > 0.6
    ended = program("student", "predict", run, tmp_path / "saved/test", "-o", tmp_path / "said.csv")
    assert ended.code == 0, ended.err
    said = pl.read_csv(tmp_path / "said.csv")
    right = [one == row["churn"] for one, row in zip(said["class"], fresh, strict=True)]
    assert np.mean(right) == pytest.approx(accuracy)
