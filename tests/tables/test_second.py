"""A second table of the same columns, with other categories and in another order; and tables that changed."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from storage.cache import Cache
from storage.datasets.table import Layout
from storage.errors import BadRequest, LabelOutOfRange, MissingSource, StaleCache
from storage.inputs.columns import columns_of
from tests.conftest import Program
from tests.tables.toys import CACHE_JOB, COLUMNS, STUDENT_JOB, customers, write_csv
from tests.teacher_cache.toys import Silent, build

FIRST = CACHE_JOB.split("[[teacher]]")[0]
SECOND = """
[[dataset]]
name = "second"
kind = "table"
path = "second.csv"
label = "churn"
columns_of = "customers"
"""
STUDENTS = STUDENT_JOB.replace('loss = "kd"\nteacher = "boosted"', 'loss = "labels"')


def write_job(folder: Path, *sections: str) -> Path:
    (folder / "job.toml").write_text("".join(sections))
    return folder / "job.toml"


def two_tables(folder: Path) -> list[dict[str, str]]:
    """Write a table, and another with a city that the first has not, its columns the other way round."""
    write_csv(folder / "customers.csv", customers(120))
    second = [row | ({"city": "Aachen"} if i % 10 == 0 else {}) for i, row in enumerate(customers(60, seed=5))]
    write_csv(folder / "second.csv", second, tuple(reversed(COLUMNS)))
    return second


def test_a_second_table_has_the_places_and_classes_of_the_first_by_name(tmp_path: Path) -> None:
    second = two_tables(tmp_path)
    watcher = Silent()
    job = write_job(tmp_path, FIRST, SECOND, 'unseen = "zeros"\n')
    assert build(job, watcher=watcher).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    one, other = (cache.dataset(name) for name in ("customers", "second"))
    assert columns_of(one.source) == columns_of(other.source)
    assert one.classes == other.classes
    rows, layout = cache.read_inputs("second", 0), Layout.promised(other.source)
    assert layout is not None
    for name, place in {"Bonn": "city=Bonn", "Köln": "city=Köln", "Ulm": "city=Ulm", "": "city missing"}.items():
        here = rows[:, layout.places.index(place)] == 1
        assert np.array_equal(here, [row["city"] == name for row in second]), name
    told = "6 rows have a category of city that was in none when its categories were learned: zeros there"
    assert any(told in note for note in watcher.notes), watcher.notes
    assert build(job).built == 0  # what was promised stays


def test_a_category_that_nobody_knew_sets_its_row_aside_unless_the_job_says_zeros(tmp_path: Path) -> None:
    two_tables(tmp_path)
    with pytest.raises(BadRequest, match="too many samples of second cannot be read") as refused:
        build(write_job(tmp_path, FIRST, SECOND))
    assert "column city has 'Aachen', which was in no row" in str(refused.value)


def test_columns_of_a_dataset_that_is_none_are_refused(tmp_path: Path) -> None:
    two_tables(tmp_path)
    with pytest.raises(MissingSource, match="wants the columns of customers"):
        build(write_job(tmp_path, 'cache = "cache"\n', SECOND))
    digits = '[[dataset]]\nname = "customers"\nkind = "digits"\n'
    with pytest.raises(BadRequest, match="which is no table"):
        build(write_job(tmp_path, 'cache = "cache"\n', digits, SECOND))


def test_students_are_measured_on_a_second_table_and_told_of_what_nobody_knew(tmp_path: Path, program: Program) -> None:
    second = two_tables(tmp_path)
    assert build(write_job(tmp_path, FIRST, SECOND, 'unseen = "zeros"\n')).exit_code == 0
    (tmp_path / "s.toml").write_text(STUDENTS.replace("customers/validation", "second"))
    ended = program("student", "train", tmp_path / "s.toml")
    assert ended.code == 0, ended.err
    run = tmp_path / "runs/small"
    # the first table's policy is to set such rows aside
    ended = program("student", "eval", run, tmp_path / "second.csv", "--json")
    assert (ended.code, len(json.loads(ended.out)["unreadable"])) == (3, 6)
    told = json.loads(program("student", "eval", run, "second", "--json").out)
    assert told["rows"] == len(second)


def test_what_nobody_knew_is_counted_where_a_student_answers(tmp_path: Path, program: Program) -> None:
    two_tables(tmp_path)
    first = FIRST.replace('label = "churn"', 'label = "churn"\nunseen = "zeros"')
    assert build(write_job(tmp_path, first)).exit_code == 0
    (tmp_path / "s.toml").write_text(STUDENTS)
    assert program("student", "train", tmp_path / "s.toml").code == 0
    told = "6 rows have a category of city that was in none when its categories were learned: zeros there"
    ended = program("student", "eval", tmp_path / "runs/small", tmp_path / "second.csv", "--json")
    assert told in json.loads(ended.out)["notes"]
    out = tmp_path / "out.csv"
    ended = program("student", "predict", tmp_path / "runs/small", tmp_path / "second.csv", "-o", out)
    assert ended.code == 0
    assert told in " ".join(ended.err.split())
    assert len(pl.read_csv(out)) == 60


@pytest.mark.parametrize("where", ["behind", "beside"])
def test_a_new_class_in_a_grown_table_is_told_by_its_name(tmp_path: Path, where: str) -> None:
    (tmp_path / "t").mkdir()
    write_csv(tmp_path / "t/a.csv", customers(40))
    job = write_job(tmp_path, FIRST.replace("customers.csv", "t"))
    assert build(job).exit_code == 0
    more = [row | {"churn": "maybe"} for row in customers(3, seed=9)]
    if where == "beside":
        write_csv(tmp_path / "t/b.csv", more)
    else:
        with (tmp_path / "t/a.csv").open("a", newline="") as file:
            csv.writer(file).writerows([row[name] for name in COLUMNS] for row in more)
    with pytest.raises((StaleCache, LabelOutOfRange)) as refused:
        build(job)
    assert "maybe" in str(refused.value)
    assert "label 2" not in str(refused.value)


def test_rows_with_ids_in_another_order_are_told_as_that(tmp_path: Path) -> None:
    rows = [row | {"key": f"k{i}"} for i, row in enumerate(customers(40))]
    write_csv(tmp_path / "customers.csv", rows, ("key", *COLUMNS))
    job = write_job(tmp_path, FIRST.replace('label = "churn"', 'label = "churn"\nid = "key"'))
    assert build(job).exit_code == 0
    write_csv(tmp_path / "customers.csv", rows[::-1], ("key", *COLUMNS))
    os.utime(tmp_path / "customers.csv", ns=(1, 1))
    with pytest.raises(StaleCache, match="lie in another order than when they were ingested") as refused:
        build(job)
    assert refused.value.found is not None
    assert refused.value.found.startswith("40 of them elsewhere, none with other content: k39, k38")
    rows[0]["income"] = "1.0"
    write_csv(tmp_path / "customers.csv", rows[::-1], ("key", *COLUMNS))
    with pytest.raises(StaleCache) as changed:
        build(job)
    assert "1 samples with other content: k0" in str(changed.value)
    assert "40 samples with another place" in str(changed.value)
    write_csv(tmp_path / "customers.csv", [row | {"key": f"{row['key']}b"} for row in rows], ("key", *COLUMNS))
    with pytest.raises(StaleCache, match="another id: k0b"):
        build(job)


@pytest.mark.parametrize("key", ["label", "target", "id"])
def test_an_answer_that_is_a_column_of_the_other_table_is_refused(tmp_path: Path, key: str) -> None:
    rows = [row | {"churn": str(i)} for i, row in enumerate(customers(60))]
    write_csv(tmp_path / "customers.csv", rows)
    write_csv(tmp_path / "second.csv", rows)
    first = (
        '[[dataset]]\nname = "customers"\nkind = "table"\npath = "customers.csv"\nvalidation = 0.25\nclasses = ["a"]\n'
    )
    second = SECOND.replace("label", key)
    with pytest.raises(BadRequest, match="churn, which is one of the columns of customers"):
        build(write_job(tmp_path, 'cache = "cache"\n', first, second))


def test_classes_that_the_first_table_has_not_are_found_once_and_stay(tmp_path: Path) -> None:
    two_tables(tmp_path)
    first = FIRST.replace('label = "churn"', 'classes = ["a"]')
    job = write_job(tmp_path, first, SECOND, 'unseen = "zeros"\n')
    assert build(job).exit_code == 0
    spec = Cache.open(str(tmp_path / "cache")).dataset("second")
    assert spec.classes == ["no", "yes"]
    assert build(job).built == 0


def test_a_class_that_the_first_table_has_not_stays_behind_its_classes(tmp_path: Path) -> None:
    second = two_tables(tmp_path)
    write_csv(tmp_path / "second.csv", [{**row, "churn": "maybe"} if i == 3 else row for i, row in enumerate(second)])
    job = write_job(tmp_path, FIRST, SECOND, 'unseen = "zeros"\n')
    assert build(job).exit_code == 0
    assert Cache.open(str(tmp_path / "cache")).dataset("second").classes == ["no", "yes", "maybe"]
    assert build(job).built == 0
