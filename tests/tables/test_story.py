"""The story of a table: a pipeline of scikit-learn taught a student, which is evaluated, used and taken along."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from storage.cache import Cache
from tests.conftest import Program
from tests.tables.toys import CACHE_JOB, COLUMNS, STUDENT_JOB, customers, fitted, frame, write_csv

ROWS = customers(300)
SHUFFLED = ("plan", "member", "note", "income", "city", "age")  # another order, and a column that nobody asked for


@pytest.fixture(scope="module")
def model() -> Any:
    return fitted(ROWS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    import skops.io

    folder = tmp_path_factory.mktemp("table")
    write_csv(folder / "customers.csv", ROWS)
    skops.io.dump(model, folder / "model.skops")
    (folder / "cache.toml").write_text(CACHE_JOB)
    (folder / "students.toml").write_text(STUDENT_JOB)
    return folder


def test_a_table_from_its_file_to_predictions_of_an_exported_student(
    program: Program, folder: Path, model: Any
) -> None:
    ended = program("cache", "build", folder / "cache.toml")
    assert ended.code == 0, ended.err
    told = " ".join((ended.out + ended.err).split())
    assert "2 of numbers: age, income; 3 of categories: city (3), plan (3), member (2)" in told
    assert "column age has nothing in" in told

    stored = torch.tensor(Cache.open(str(folder / "cache")).read_targets("customers", "boosted", 0)["logits"])
    assert np.allclose(stored.softmax(1), model.predict_proba(frame(ROWS))[: len(stored)], atol=1e-3)

    assert program("student", "train", folder / "students.toml").code == 0
    run, fresh = folder / "runs/small", customers(200, seed=1)
    write_csv(folder / "test.csv", fresh, tuple(reversed(COLUMNS)))
    ended = program("student", "eval", run, folder / "test.csv", "--json")
    assert ended.code == 0, ended.err
    accuracy = json.loads(ended.out)["figures"]["accuracy"]
    assert accuracy > 0.8

    write_csv(folder / "new.csv", [{**row, "note": "x"} for row in fresh], SHUFFLED)
    ended = program("student", "predict", run, folder / "new.csv", "-o", folder / "said.csv")
    assert ended.code == 0, ended.err
    with (folder / "said.csv").open() as file:
        said = list(csv.DictReader(file))
    assert np.mean([row["class"] == own["churn"] for row, own in zip(said, fresh, strict=True)]) == accuracy

    ended = program("student", "export", run, "--format", "onnx", "-o", folder / "onnx")
    assert ended.code == 0, ended.err
    ended = program("student", "predict", folder / "onnx/model.onnx", folder / "new.csv", "-o", folder / "said.parquet")
    assert ended.code == 0, ended.err
    found = pl.read_parquet(folder / "said.parquet")
    assert found["class"].to_list() == [row["class"] for row in said]
    about = json.loads((folder / "onnx/preprocessing.json").read_text())
    assert "\npipeline_tag: tabular-classification\n" in (folder / "onnx/README.md").read_text()
    assert about["places"][:5] == ["age", "age missing", "income", "city=Bonn", "city=Köln"]


def test_tables_whose_places_mean_something_else_are_refused(program: Program, tmp_path: Path) -> None:
    job = 'cache = "cache"\n'
    for name, towns in (("one", "ab"), ("two", "ac")):
        lines = [f"{n % 5},{towns[n % 2]},{'no' if n % 3 else 'yes'}" for n in range(20)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["n,town,y", *lines]))
        job += f'[[dataset]]\nname = "{name}"\nkind = "table"\npath = "{name}.csv"\nlabel = "y"\n'
    (tmp_path / "cache.toml").write_text(job)
    assert program("cache", "build", tmp_path / "cache.toml").code == 0
    student = STUDENT_JOB.replace("customers/train", "one").replace("customers/validation", "two")
    labels = student.replace('loss = "kd"\nteacher = "boosted"', 'loss = "labels"')
    (tmp_path / "students.toml").write_text(labels)
    ended = program("student", "train", tmp_path / "students.toml")
    assert ended.code == 2
    assert "town.values = ['a', 'c']" in ended.err
    assert "town.values = ['a', 'b']" in ended.err


def test_a_table_that_grows_keeps_what_was_learned_of_it(program: Program, tmp_path: Path) -> None:
    lines = [f"{n % 5},{'ab'[n % 2]},{'no' if n % 3 else 'yes'}" for n in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["n,town,y", *lines]) + "\n")
    job = (
        'cache = "cache"\n[[dataset]]\nname = "t"\nkind = "table"\npath = "t.csv"\nlabel = "y"\nmax_quarantined = 0.1\n'
    )
    (tmp_path / "cache.toml").write_text(job)
    assert program("cache", "build", tmp_path / "cache.toml").code == 0
    promise = (tmp_path / "cache/t/dataset.json").read_bytes()
    with (tmp_path / "t.csv").open("a") as file:
        file.write("900,b,no\n7,c,yes\n")
    ended = program("cache", "build", tmp_path / "cache.toml")
    assert ended.code == 3
    assert "column town has 'c', which was in no row" in " ".join((ended.out + ended.err).split())
    assert (tmp_path / "cache/t/dataset.json").read_bytes() == promise
    samples = Cache.open(str(tmp_path / "cache")).samples().of("t")
    assert samples["sample_id"].to_list()[-1] == "t.csv:40"
    (tmp_path / "cache.toml").write_text(job + 'numeric = ["n"]\n')
    ended = program("cache", "build", tmp_path / "cache.toml")
    assert (ended.code, "source.columns.town" in ended.err) == (2, True), ended.err
