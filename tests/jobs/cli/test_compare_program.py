"""`student compare` as a user meets it: 80 columns, nothing cut off, one JSON value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from student_train.run_files.records import RUN_FILE
from student_train.running.train import train_students
from tests.conftest import Program
from tests.jobs.test_isolation import rooms_of
from tests.student_train.toys import KD, LABELS, Recipe, request_of, student, write_cache


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    cache = write_cache(folder / "cache", Recipe())
    taught = [
        student(
            f"mlp-learning_rate_{rate}-h_{size}-seed_{seed}",
            learning_rate=rate,
            seed=seed,
            objective=[KD, LABELS],
            options={"hidden": [size]},
        )
        for rate in (0.001, 0.01)
        for size in (4, 16)
        for seed in (0, 1)
    ]
    alone = [student(f"alone-seed_{seed}", seed=seed, options={"hidden": [16]}) for seed in (0, 1)]
    wild = student("wild", optimizer="sgd", learning_rate=1000.0, epochs=9)
    train_students(request_of(cache, folder / "runs", *taught, *alone, wild))
    return folder / "runs"


def test_a_sweep_is_a_table_of_settings_in_80_columns(program: Program, swept: Path) -> None:
    ended = program("student", "compare", swept)
    assert ended.code == 0
    lines = ended.out.replace(str(swept), "runs").splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in ended.out
    rows = [line.split() for line in lines if " ± " in line and line.split()[0].isdecimal()]
    # number, setting, what varies, seeds: a line for each of five, each of its own
    assert {tuple(row[1:4]) for row in rows if row[1] == "mlp"} == {
        ("mlp", f"[{size}]", rate) for size in (4, 16) for rate in ("0.001", "0.01")
    }
    text = " ".join(ended.out.split())
    for told in (
        "11 students of 6 settings, measured on 48 held rows of toy/validation",
        "teacher sage",
        "chance",
        "*: labels alone, no teacher",
        "with the 95 % interval over the same 48 rows and the noise of seeds",
        "which all its students share",
        "wild failed: DivergedLoss: student wild diverged in epoch 2",
        "mean accuracy, %, of settings that are alike but for hidden [4]: ",
    ):
        assert told in text, told


def test_what_is_too_wide_for_a_line_is_several_tables(program: Program, swept: Path, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe())
    grid = [(a, b, c, d) for a in (1.0, 2.0) for b in (0.0, 0.25) for c in ("cosine", "constant") for d in (0.5, 0.75)]
    wide = [
        student(
            f"m-a_{a}-b_{b}-s_{c}-m_{d}",
            objective=[KD | {"temperature": a}, LABELS | {"smoothing": b}],
            schedule=c,
            momentum=d,
            options={"hidden": [int(100 * a)], "dropout": b / 2},
            epochs=1,
        )
        for a, b, c, d in grid
    ]
    train_students(request_of(cache, tmp_path / "runs", *wide))
    ended = program("student", "compare", tmp_path / "runs")
    lines = ended.out.replace(str(tmp_path), "").splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith(("#", " #"))]
    assert len(heads) > 1
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines[heads[0] :] if line.split() and line.split()[0].isdecimal()]
    assert len(rows) == 16 * len(heads)
    assert all(len([row for row in rows if row[0] == str(number)]) == len(heads) for number in range(1, 17))


def test_as_json_there_are_students_and_settings(program: Program, swept: Path) -> None:
    found = json.loads(program("student", "compare", swept, "--json").out)
    assert len(found["students"]) == 11
    (compared,) = found["compared"]
    assert (compared["rows"], compared["held_rows"], compared["compared_by"]) == ("toy/validation", 48, "accuracy")
    first = compared["settings"][0]
    assert (first["seeds"], first["counted"], len(first["students"]), first["behind"]) == (2, 2, 2, None)
    assert set(compared["settings"][1]["behind"]) == {"mean", "half", "with_seeds"}
    assert compared["best"] == first["setting"]
    assert {tuple(effect["keys"]) for effect in compared["effects"]} == {("options.hidden",), ("learning_rate",)}
    assert compared["teachers"][0]["teacher"] == "sage"
    assert found["exit_code"] == 0


def test_a_damaged_record_is_told_and_the_rest_is_shown(program: Program, swept: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(swept, tmp_path / "runs")
    (runs / "alone-seed_0" / RUN_FILE).write_text("{")
    ended = program("student", "compare", runs)
    assert ended.code == 65
    assert "alone-seed_0: " in ended.err
    assert "is not the record of a run" in ended.err
    assert "of 6 settings" in ended.out or "of 7 settings" in ended.out
    assert json.loads(program("student", "compare", runs, "--json").out)["damaged"].keys() == {"alone-seed_0"}


def test_one_student_has_no_columns_of_comparisons(program: Program, swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept / "alone-seed_0", tmp_path / "runs/alone-seed_0")
    out = program("student", "compare", tmp_path / "runs").out
    assert "1 student, measured on 48 held rows of toy/validation" in " ".join(out.split())
    assert "behind" not in out
    assert " n " not in out


def test_runs_of_other_rows_are_another_table(program: Program, swept: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(swept, tmp_path / "runs")
    other = write_cache(tmp_path / "other", Recipe(rows=120))
    train_students(request_of(other, runs, student("stranger")))
    out = " ".join(program("student", "compare", runs).out.split())
    before, after = out.split("measured on other rows, and not to be compared with those above (2 of 2):")
    assert ("stranger" in before, "stranger" in after) == (False, True)
    assert "measured on 24 held rows" in after


@pytest.mark.slow
def test_a_comparison_imports_nothing_slow(swept: Path) -> None:
    assert rooms_of("student", "compare", swept) & {"torch", "dask", "teacher_cache", "matplotlib"} == set()
