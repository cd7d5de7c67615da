"""A number as the answer: a table with a target, a regressor as teacher, students that tell the number."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from storage.cache import Cache
from storage.cache.copies.diff import diff
from storage.errors import BadRequest
from storage.tasks.base import Answered
from storage.tasks.regression import Regression
from student_train.feed.own_loop import open_rows, wants
from tests.conftest import Program
from tests.tables.toys import HOUSES_JOB, HOUSES_STUDENTS, houses, regressor, write_csv
from tests.teacher_cache.toys import Silent, build, write_job

COLUMNS = ("rooms", "city", "price")


def test_a_price_from_its_table_to_predictions(program: Program, tmp_path: Path) -> None:
    import skops.io

    rows = [row | {"deed": f"deed-{number}"} for number, row in enumerate(houses(240))]
    more = {"rooms": "3", "city": "Ulm", "price": "250000", "deed": "deed-240"}
    write_csv(tmp_path / "houses.csv", [*rows, more], (*COLUMNS, "deed"))
    model = regressor(rows)
    skops.io.dump(model, tmp_path / "linear.skops")
    (tmp_path / "cache.toml").write_text(HOUSES_JOB.replace('target = "price"', 'target = "price"\nid = "deed"'))
    (tmp_path / "students.toml").write_text(HOUSES_STUDENTS)
    ended = program("cache", "build", tmp_path / "cache.toml")
    assert ended.code == 0, ended.err
    told = re.search(r"^houses/linear: RMSE ([0-9,]+) of 241 rows with numbers, in their unit", ended.out, re.MULTILINE)
    assert told is not None, ended.out
    opened = Cache.open(str(tmp_path / "cache"))
    samples = opened.samples().of("houses")
    said = opened.read_targets("houses", "linear", 0, names=["vectors"])["vectors"]
    off = float(np.sqrt(np.mean((np.asarray(said) - samples["target"].to_numpy()) ** 2)))
    assert float(told[1].replace(",", "")) == pytest.approx(off, rel=1e-3)
    assert "linear serves vector_mse, vector_similarity\n  not: vector_cosine, vector_rkd, vector_pkt" in ended.out
    assert program("cache", "verify", tmp_path / "cache").code == 0
    targets = Cache.open(str(tmp_path / "cache")).samples().of("houses")["target"].to_numpy()
    assert np.allclose(targets[:240, 0], [float(row["price"]) for row in rows], rtol=1e-7)

    ended = program("student", "train", tmp_path / "students.toml")
    assert ended.code == 0, ended.err
    ended = program("student", "compare", tmp_path / "runs", "--json")
    assert ended.code == 0, ended.err
    ended = program("student", "compare", tmp_path / "runs")
    assert "rmse" in ended.out
    record = json.loads((tmp_path / "runs/taught/run.json").read_text())
    assert record["rmse"] < 15_000
    assert record["r2"] > 0.95
    assert 4_000 < record["teacher_rmse"] < 6_000

    (tmp_path / "turned.toml").write_text(HOUSES_STUDENTS.replace("vector_mse", "vector_cosine"))
    ended = program("student", "train", tmp_path / "turned.toml", "--dry-run")
    assert ended.code == 2
    assert "one number has none but its sign" in ended.err

    fresh = [row | {"deed": f"new-{number}"} for number, row in enumerate(houses(100, seed=1))]
    write_csv(tmp_path / "odd.csv", [*fresh[:6], fresh[6] | {"rooms": "many"}], (*COLUMNS, "deed"))
    ended = program("student", "eval", tmp_path / "runs/taught", tmp_path / "odd.csv", "--json")
    assert [each["sample_id"] for each in json.loads(ended.out)["unreadable"]] == ["new-6"]
    ended = program("student", "predict", tmp_path / "runs/taught", tmp_path / "odd.csv", "--json")
    assert [each["sample_id"] for each in json.loads(ended.out)["reasons"]] == ["new-6"]
    write_csv(tmp_path / "test.csv", fresh, tuple(reversed(COLUMNS)))
    ended = program("student", "eval", tmp_path / "runs/taught", tmp_path / "test.csv", "--json")
    assert ended.code == 0, ended.err
    rmse = json.loads(ended.out)["figures"]["rmse"]
    write_csv(tmp_path / "new.csv", fresh, ("city", "rooms"))
    ended = program("student", "predict", tmp_path / "runs/taught", tmp_path / "new.csv", "-o", tmp_path / "said.csv")
    assert ended.code == 0, ended.err
    with (tmp_path / "said.csv").open() as file:
        said = [float(row["price"]) for row in csv.DictReader(file)]
    off = np.array(said) - [float(row["price"]) for row in fresh]
    assert np.sqrt((off**2).mean()) == pytest.approx(rmse, rel=1e-4)

    ended = program("student", "export", tmp_path / "runs/taught", "--format", "onnx", "-o", tmp_path / "onnx")
    assert ended.code == 0, ended.err
    assert "answers of " in ended.out  # nothing here is a logit
    assert "gives `logits`, which are `price`, each in its own unit;" in (tmp_path / "onnx/README.md").read_text()
    ended = program("student", "predict", tmp_path / "onnx", tmp_path / "new.csv", "-o", tmp_path / "again.csv")
    assert ended.code == 0, ended.err
    with (tmp_path / "again.csv").open() as file:
        assert [float(row["price"]) for row in csv.DictReader(file)] == pytest.approx(said, rel=1e-5)

    model = 'kind = "sklearn"\npath = "linear.skops"\ntrust_types = ["numpy.dtype"]'
    job = (
        (tmp_path / "cache.toml").read_text().replace('"linear"', '"taught"').replace(model, 'student = "runs/taught"')
    )
    (tmp_path / "again.toml").write_text(job)
    teacher = f"{tmp_path / 'again.toml'}:taught"
    whole = program("student", "make", "copy", teacher, "-o", tmp_path / "whole", "--json")
    assert json.loads(whole.out)["agreement"] == pytest.approx(1.0)
    ended = program("student", "make", "copy", teacher, "-o", tmp_path / "narrow", "--width", "0.125")
    assert ended.code == 0, ended.err
    told = re.search(r"R² of its numbers beside the teacher's (\S+), of 1", ended.out)
    assert told is not None, ended.out
    assert float(told[1]) < 0.9  # the cosine of a price to another is 1


def test_a_number_that_is_another_in_one_of_two_caches_is_told(tmp_path: Path) -> None:
    caches = []
    for name, last in (("a", 5), ("b", 6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.csv").write_text(f"x,price\n1,7\n2,8\n3,{last}\n")
        section = '[[dataset]]\nname = "t"\nkind = "table"\npath = "t.csv"\ntarget = "price"\n'
        build(write_job(tmp_path / name, section))
        caches.append(Cache.open(str(tmp_path / name / "cache")))
    rows = diff(caches[0], caches[1], Silent()).rows["t"]
    assert (rows.both, rows.payload, rows.label, rows.examples["label"]) == (3, 0, 1, ["t.csv:2"])


def test_what_is_advised_for_numbers_holds_them(tmp_path: Path) -> None:
    import skops.io

    rows = houses(30)
    write_csv(tmp_path / "houses.csv", rows, COLUMNS)
    skops.io.dump(regressor(rows), tmp_path / "linear.skops")
    given = HOUSES_JOB.replace('encoding = { kind = "vectors" }\n', "")
    assert "encoding" not in given
    (tmp_path / "job.toml").write_text(given)
    with pytest.raises(BadRequest) as caught:
        build(tmp_path / "job.toml")
    assert caught.value.do is not None
    advised = caught.value.do.split(" in [[teacher]]")[0]
    (tmp_path / "job.toml").write_text(f"{given}{advised}\n")
    assert build(tmp_path / "job.toml").exit_code == 0

    # prices are beyond what fp16 holds, and vectors have no bf16
    halves = f'{given}encoding = {{ kind = "vectors", dtype = "fp16" }}\n'
    (tmp_path / "job.toml").write_text(halves.replace('cache = "cache"', 'cache = "halves"'))
    (refused,) = build(tmp_path / "job.toml").refused
    assert "overflows the stored precision of vectors" in refused
    assert 'store dtype = "fp32"' in refused
    assert "bf16" not in refused


SEVERAL_JOB = """cache = "cache"

[[dataset]]
name = "flats"
kind = "table"
path = "flats.csv"
target = ["rent", "vacant"]
validation = 0.25

[[teacher]]
name = "linear"
kind = "sklearn"
path = "linear.skops"
trust_types = ["numpy.dtype"]
encoding = { kind = "vectors" }
"""


def flats(folder: Path, rows: int = 240) -> np.ndarray:
    """Write a table of two targets of unlike units, one below 1, and a regressor of both; return the targets."""
    import skops.io
    from sklearn.linear_model import LinearRegression

    draw = np.random.default_rng(0)
    x, y = draw.uniform(0, 1, (2, rows))
    targets = np.stack([1000 + 3000 * x + draw.normal(0, 30, rows), 0.2 + 0.6 * y + draw.normal(0, 0.01, rows)], axis=1)
    lines = [f"{a},{b},{rent},{vacant}" for a, b, (rent, vacant) in zip(x, y, targets, strict=True)]
    (folder / "flats.csv").write_text("\n".join(["x,y,rent,vacant", *lines, ""]))
    skops.io.dump(LinearRegression().fit(np.stack([x, y], axis=1), targets), folder / "linear.skops")
    return targets


@pytest.mark.slow
def test_several_numbers_of_unlike_units_are_each_learned_and_told_by_name(program: Program, tmp_path: Path) -> None:
    flats(tmp_path)
    (tmp_path / "cache.toml").write_text(SEVERAL_JOB)
    (tmp_path / "students.toml").write_text(HOUSES_STUDENTS.replace("houses", "flats"))
    ended = program("cache", "build", tmp_path / "cache.toml")
    assert ended.code == 0, ended.err
    ended = program("student", "train", tmp_path / "students.toml")
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "runs/taught/run.json").read_text())
    assert record["r2"] > 0.9
    assert set(record["rmse_of"]) == {"rent", "vacant"}
    assert record["rmse_of"]["rent"] < 300
    assert record["rmse_of"]["vacant"] < 0.06
    assert record["rmse"] < 0.35  # in their deviations: rents of 866 and shares of 0.17
    assert record["teacher_rmse"] < 0.1
    ended = program("student", "eval", tmp_path / "runs/taught", tmp_path / "flats.csv")
    assert ended.code == 0, ended.err
    assert re.search(r"^RMSE in deviations +0\.", ended.out, re.MULTILINE), ended.out
    assert re.search(r"^  of vacant +0\.0", ended.out, re.MULTILINE), ended.out


def test_numbers_of_a_row_reach_a_loss_as_they_are(tmp_path: Path) -> None:
    targets = flats(tmp_path, 24)
    (tmp_path / "cache.toml").write_text(SEVERAL_JOB)
    assert build(tmp_path / "cache.toml").exit_code == 0
    rows = open_rows(Cache.open(str(tmp_path / "cache")), "flats", wants(labels=True))
    (batch,) = rows.in_order(24)
    found = batch.supervision().labels_B
    assert found is not None
    np.testing.assert_allclose(found.numpy(), targets, rtol=1e-6)


@pytest.mark.parametrize(("off", "weak"), [(0.0, False), (0.9, False), (1.1, True), (30.0, True)])
def test_a_teacher_no_better_than_the_mean_is_told_as_one(off: float, weak: bool) -> None:
    rows, deviation = 10, 7.0
    answered = Answered(rows, 0, rows * (off * deviation) ** 2)
    text, is_near = Regression().standing(answered, 1, [], [deviation])
    assert is_near == weak
    assert "7 by telling the mean alone" in text
    assert Regression().standing(answered, 1, []) == (text.partition(";")[0], False)  # nobody knows how they vary


def test_a_regressor_that_was_fitted_to_other_columns_is_warned_of(program: Program, tmp_path: Path) -> None:
    import skops.io
    from sklearn.linear_model import LinearRegression

    targets = flats(tmp_path)
    turned = LinearRegression().fit(np.random.default_rng(1).uniform(0, 1, (len(targets), 2)), targets[:, ::-1])
    skops.io.dump(turned, tmp_path / "linear.skops")
    (tmp_path / "cache.toml").write_text(SEVERAL_JOB)
    (tmp_path / "students.toml").write_text(
        HOUSES_STUDENTS.replace("houses", "flats").replace("epochs = 30", "epochs = 1")
    )
    ended = program("cache", "build", tmp_path / "cache.toml")
    told = "warning: flats/linear is no better than telling the mean: RMSE "
    assert told in ended.out.replace("\n", " ") + ended.err
    ended = program("student", "train", tmp_path / "students.toml", "--dry-run")
    assert told in ended.out.replace("\n", " ") + ended.err
