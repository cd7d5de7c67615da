"""Settings of real runs of toy rows: who is one, what varies, who is best, what is not compared."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from storage.cache import Cache
from storage.tasks import TASKS
from student_train.comparing.answers import read_answers
from student_train.comparing.compared import BLUEPRINT_FILE, Compared, compare_settings
from student_train.comparing.headline import headline
from student_train.comparing.runs import ShownRun, gather_runs
from student_train.comparing.settings import common_name, settings_of, varied_of
from student_train.run_files.predictions import read_predictions
from student_train.run_files.predictions_file import PREDICTIONS_FILE
from student_train.run_files.records import read_record, write_record
from student_train.running.train import train_students
from tests.damage import flipped
from tests.language.toys import counting_cache, counting_teacher, small_gpt
from tests.language.toys import request as token_request
from tests.student_train.toys import KD, LABELS, Recipe, request_of, student, write_cache


@pytest.fixture(scope="module")
def swept(toy_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return runs of two rates and temperatures, of labels alone, and of one that learns nothing; two seeds each."""
    runs = tmp_path_factory.mktemp("swept")
    grid = [(rate, warm, seed) for rate in (0.001, 0.01) for warm in (1.0, 4.0) for seed in (0, 1)]
    taught = [
        student(
            f"m-lr_{rate}-t_{warm:g}-s_{seed}",
            learning_rate=rate,
            seed=seed,
            objective=[KD | {"temperature": warm}, LABELS],
        )
        for rate, warm, seed in grid
    ]
    alone = [student(f"alone-s_{seed}", seed=seed) for seed in (0, 1)]
    lost = [student(f"lost-s_{seed}", seed=seed, learning_rate=1e-9) for seed in (0, 1)]
    train_students(request_of(toy_cache, runs, *taught, *alone, *lost))
    return runs


def compared(runs: Path) -> Compared:
    (found,) = compare_settings(gather_runs(runs))
    return found


def test_students_that_differ_in_their_seed_alone_are_one_setting(swept: Path) -> None:
    found = compared(swept)
    assert {setting.name: len(setting.runs) for setting in found.settings} == dict.fromkeys(
        ["m-lr_0.001-t_1", "m-lr_0.001-t_4", "m-lr_0.01-t_1", "m-lr_0.01-t_4", "alone", "lost"], 2
    )
    setting = found.settings[0]
    accuracies = [read_record(run.folder).accuracy for run in setting.runs]  # type: ignore[union-attr]
    assert setting.mean("accuracy") == pytest.approx(sum(accuracies) / 2)  # type: ignore[arg-type]
    assert setting.deviation("accuracy") == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)  # type: ignore[operator]


def test_what_varies_within_a_name_is_a_column_and_the_rest_is_in_the_name(swept: Path) -> None:
    found = compared(swept)
    assert {setting.label for setting in found.settings} == {"m", "alone", "lost"}
    assert [varied.title for varied in found.varied] == ["T", "lr"]
    values = {setting.name: [varied.text(setting) for varied in found.varied] for setting in found.settings}
    assert values["m-lr_0.001-t_4"] == ["4", "0.001"]
    assert values["alone"] == [None, "0.01"]


def test_the_effect_of_a_key_is_of_settings_that_are_alike_but_for_it(swept: Path) -> None:
    found = compared(swept)
    means = {setting.name: setting.mean("accuracy") for setting in found.settings}
    effect = next(effect for effect in found.effects if effect.varied.title == "lr")
    assert effect.values == ("0.001", "0.01")
    assert sorted(effect.lines) == sorted(
        (means[f"m-lr_0.001-t_{warm}"], means[f"m-lr_0.01-t_{warm}"]) for warm in (1, 4)
    )
    assert effect.means[1] == pytest.approx((means["m-lr_0.01-t_1"] + means["m-lr_0.01-t_4"]) / 2)  # type: ignore[operator]


def test_the_best_the_teacher_labels_alone_and_chance_are_lines(swept: Path) -> None:
    found = compared(swept)
    labels = read_answers(swept / "lost-s_0").table["label"]  # type: ignore[union-attr]
    assert (found.num_rows, found.rows, found.num_classes) == (48, "toy/validation", 4)
    assert found.chance == labels.value_counts()["count"].max() / 48  # type: ignore[operator]
    (teacher,) = found.teachers
    table = read_answers(swept / "m-lr_0.01-t_1-s_0").table  # type: ignore[union-attr]
    assert teacher.figures["accuracy"] == (table["teacher_top"] == table["label"]).mean()
    assert found.labels_alone is not None
    assert found.labels_alone.name == "alone"
    assert "lost" in found.near_chance
    assert {"alone", "m-lr_0.01-t_1"}.isdisjoint(found.near_chance)
    assert found.behind["lost"].is_told
    best = found.best
    assert best is not None
    lost = next(setting for setting in found.settings if setting.name == "lost")
    assert found.behind["lost"].mean == pytest.approx(best.mean("accuracy") - lost.mean("accuracy"))  # type: ignore[operator]


def test_the_headline_says_who_is_best_and_beside_whom(swept: Path) -> None:
    first, *others = headline(compared(swept))
    assert first.startswith("best of 6 settings: ")
    assert "(mean of 2 seeds ± " in first
    assert [line.partition(":")[0] for line in others][:2] == ["next", "teacher sage"]
    assert "labels alone" in "\n".join(others)


def test_without_labels_alone_the_headline_says_that_it_is_unknown(swept: Path, tmp_path: Path) -> None:
    for folder in swept.glob("m-*"):
        shutil.copytree(folder, tmp_path / folder.name)
    assert "labels alone: no such student was trained, so that what the teacher adds is unknown" in headline(
        compared(tmp_path)
    )


@pytest.mark.parametrize("train", ["toy", "toy/validation"])
def test_figures_on_rows_that_were_trained_on_are_not_taken_for_held_ones(
    toy_cache: Cache, tmp_path: Path, train: str
) -> None:
    train_students(request_of(toy_cache, tmp_path, student("honest")))
    assert not any(line.startswith("warning") for line in headline(compared(tmp_path)))
    train_students(request_of(toy_cache, tmp_path, student("peeks", learning_rate=0.02), train=train))
    warning = "warning: measured on rows that they were trained on, which are not held: peeks"
    assert headline(compared(tmp_path))[1] == warning
    shutil.rmtree(tmp_path / "honest")
    assert headline(compared(tmp_path))[1] == warning.replace("peeks", "all")


def test_runs_of_other_held_rows_are_apart(toy_cache: Cache, swept: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(swept, tmp_path / "runs")
    other = write_cache(tmp_path / "other", Recipe(rows=120))
    train_students(request_of(other, runs, student("stranger")))
    train_students(request_of(toy_cache, runs, student("trained"), validation="toy/train"))
    found = compare_settings(gather_runs(runs))
    first, *others = [(each.rows, each.num_rows, len(each.settings)) for each in found]
    assert first == ("toy/validation", 48, 6)
    assert sorted(others) == [("toy/train", 192, 1), ("toy/validation", 24, 1)]


def test_the_same_rows_in_a_cache_of_another_encoding_are_compared(swept: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(swept, tmp_path / "runs")
    other = write_cache(tmp_path / "other", Recipe(logits_dtype="fp32"))
    train_students(request_of(other, runs, student("exact", objective=[KD, LABELS])))
    found = compared(runs)
    assert len(found.settings) == 7
    assert found.best is not None
    assert "exact" in {found.best.name, *found.behind}


def test_a_failed_seed_is_told_and_does_not_count(swept: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(swept, tmp_path / "runs")
    record = read_record(runs / "alone-s_1")
    assert record is not None
    write_record(runs / "alone-s_1", record.model_copy(update={"status": "failed", "accuracy": None, "error": "x"}))
    setting = next(setting for setting in compared(runs).settings if setting.name == "alone")
    assert (len(setting.values("accuracy")), setting.statuses, setting.first.name) == (1, {"failed": 1}, "alone-s_0")


def test_damaged_predictions_are_told_and_the_figures_stay(swept: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(swept, tmp_path / "runs")
    (runs / "lost-s_0" / PREDICTIONS_FILE).write_bytes(b"PAR1 nothing")
    found = compared(runs)
    assert list(found.faults) == ["lost-s_0"]
    assert "lost" in found.behind


def test_a_damaged_number_of_classes_is_told_and_not_believed(swept: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(swept, tmp_path / "runs")
    for path in runs.glob(f"*/{BLUEPRINT_FILE}"):
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, 8 * (whole.index(b'"num_classes": ') + len('"num_classes": '))))
    found = compared(runs)
    assert found.num_classes == 0
    assert [fault for fault in found.faults.values() if BLUEPRINT_FILE not in fault] == []
    assert set(found.faults) == {path.name for path in runs.iterdir() if (path / BLUEPRINT_FILE).exists()}


def test_answers_are_those_of_the_predictions(swept: Path) -> None:
    for run in swept.iterdir():
        answers, predictions = read_answers(run), read_predictions(run)
        assert answers is not None
        assert predictions is not None
        assert (answers.task, answers.teacher) == (predictions.task, predictions.teacher)
        columns = ["row", "label", "top", "teacher_top"]
        assert answers.table.select(columns).equals(predictions.table.select(columns))


def test_language_models_are_compared_by_cross_entropy(tmp_path: Path) -> None:
    cache = counting_cache(tmp_path, counting_teacher(), rows=40)
    models = [
        small_gpt(f"gpt-lr_{rate}-s_{seed}", learning_rate=rate, seed=seed) for rate in (1e-7, 0.01) for seed in (0, 1)
    ]
    train_students(token_request(cache, tmp_path / "runs", *models))
    found = compared(tmp_path / "runs")
    assert found.gain.column == "cross_entropy"
    losses = [setting.mean("cross_entropy") for setting in found.settings]
    assert losses == sorted(losses)  # type: ignore[type-var]
    assert found.behind[found.settings[1].name].mean == pytest.approx(losses[1] - losses[0], rel=1e-3)  # type: ignore[operator]
    assert found.chance is not None
    assert found.effects[0].best(found.gain) == 1
    assert found.settings[1].name in found.near_chance


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (["m-lr_0.01-s_0", "m-lr_0.01-s_1"], "m-lr_0.01"),
        (["m-seed_0-lr_1e-05", "m-seed_1-lr_1e-05"], "m-lr_1e-05"),
        (["one"], "one"),
        (["one", "another-s_1"], "one and 1 more"),
        (["kd", "labels", "x"], "kd and 2 more"),
    ],
)
def test_a_setting_is_called_by_what_its_students_names_share(names: list[str], common: str) -> None:
    assert common_name(names) == common


def made(name: str, seed: int = 0, accuracy: float | None = 0.5, **options: Any) -> ShownRun:
    """Return a run of which only the record is known."""
    figures = {"status": "finished", "accuracy": accuracy, "architecture": "mlp"}
    return ShownRun(Path(name), figures, identity={"student": {"seed": seed} | options, "teachers": {}})


def settings(runs: Sequence[ShownRun]) -> list[Any]:
    return settings_of(runs, lambda run: -(run.figures["accuracy"] or 0.0))


def test_a_copy_counts_once_and_is_told() -> None:
    (setting,) = settings([made("a-s_0", 0, 0.5), made("b-s_0", 0, 0.7), made("a-s_1", 1, 0.6)])
    assert [run.name for run in setting.counted] == ["a-s_1", "a-s_0"]
    assert (setting.mean("accuracy"), setting.statuses) == (pytest.approx(0.55), {"copies": 1})


def test_runs_that_differ_in_the_order_of_rows_alone_are_no_copies() -> None:
    runs = [made(f"a-o_{order}", 0, accuracy) for order, accuracy in ((0, 0.5), (1, 0.7))]
    ordered = [
        ShownRun(run.folder, run.figures, identity=run.identity | {"data": {"order_seed": order}})
        for order, run in enumerate(runs)
    ]
    (setting,) = settings(ordered)
    assert (setting.mean("accuracy"), setting.statuses) == (pytest.approx(0.6), {})


def test_the_best_mean_comes_first() -> None:
    found = settings([made("a-s_0", 0, 0.99, x=1), made("a-s_1", 1, 0.5, x=1), made("b-s_0", 0, 0.8, x=2)])
    assert [setting.name for setting in found] == ["a", "b-s_0"][::-1]


def test_keys_that_vary_together_are_one_column() -> None:
    runs = [made(f"m-a_{a}-b_{b}-c_{c}", a=a, b=b, c=c) for a, b in ((1, 2), (3, 4)) for c in (5, 6)]
    varied = varied_of(settings(runs))
    assert [each.keys for each in varied] == [("a", "b"), ("c",)]
    assert {each.text(setting) for each in varied[:1] for setting in settings(runs)} == {"1/2", "3/4"}
    assert varied[0].title == "a/b"


def test_settings_that_no_column_tells_apart_keep_their_names() -> None:
    one, other = made("m-x_1", x=1), made("m-x_1b", x=1)
    found = settings([one, ShownRun(other.folder, other.figures, identity=other.identity | {"cache": "another"})])
    assert sorted(setting.label for setting in found) == ["m-x_1", "m-x_1b"]


def test_chance_is_the_commonest_class_or_the_entropy_of_a_vocabulary() -> None:
    assert TASKS["image_classification"].chance(4, [1, 1, 6, 2]) == 0.6
    assert TASKS["image_classification"].chance(4, []) == 0.25
    assert TASKS["language_model"].chance(8, []) == pytest.approx(2.0794415)


def test_an_old_file_of_predictions_says_its_task(swept: Path, tmp_path: Path) -> None:
    from storage.format.sealed import seal, unseal

    about, table = unseal((swept / "alone-s_0" / PREDICTIONS_FILE).read_bytes())
    about = {key: value for key, value in about.items() if key != "task"} | {"format_version": 1}
    (tmp_path / PREDICTIONS_FILE).write_bytes(seal(table, about))
    answers = read_answers(tmp_path)
    assert answers is not None
    assert answers.task == "image_classification"
