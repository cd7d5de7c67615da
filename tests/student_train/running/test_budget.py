"""How long a run is, where it is evaluated, and which of its weights are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.torch import load_file

from storage.cache import Cache
from storage.errors import Interrupted
from student_train.options.sections import FleetOptions
from student_train.preparing.request import Request
from student_train.run_files.records import RunRecord
from student_train.running.events import EpochDone, Event, StudentFinished, WithinEpoch
from student_train.running.tracking.listening import epoch_points
from student_train.running.train import train_students
from tests.student_train.running.test_loop import stop_after, train, weights
from tests.student_train.toys import KD, LABELS, request_of, student

EPOCH = 6  # steps: 192 rows in batches of 32
STEPS: dict[str, Any] = {"epochs": None, "schedule": "constant", "optimizer": "sgd"}
ALL_OF_IT: dict[str, Any] = STEPS | {
    "max_steps": 2 * EPOCH + 2,
    "evaluate_every_steps": 4,
    "best_by": "cross_entropy",
    "ema_decay": 0.5,
    "learning_rate": 1.0,
}


def metrics(runs: Path, name: str = "a") -> pl.DataFrame:
    return pl.read_parquet(runs / name / "metrics.parquet")


def steps(runs: Path, epoch: int) -> pl.DataFrame:
    return pl.read_parquet(runs / f"a/steps/{epoch:05d}.parquet")


def test_a_run_may_end_in_the_middle_of_an_epoch(toy_cache: Cache, tmp_path: Path) -> None:
    train(toy_cache, tmp_path / "epochs", student(**STEPS | {"epochs": 2}))
    record = train(toy_cache, tmp_path / "steps", student(**STEPS, max_steps=EPOCH + 2))
    assert (record.steps, record.step, record.epochs, record.epoch) == (EPOCH + 2, EPOCH + 2, 2, 2)
    assert metrics(tmp_path / "steps")["step"].to_list() == [EPOCH, EPOCH + 2]
    assert metrics(tmp_path / "steps")["epochs_done"].to_list() == [1.0, (EPOCH + 2) / EPOCH]
    assert steps(tmp_path / "steps", 2).equals(steps(tmp_path / "epochs", 2).head(2))
    last = metrics(tmp_path / "steps").row(-1, named=True)
    assert (record.accuracy, record.cross_entropy) == (last["accuracy"], last["cross_entropy"])
    assert pl.read_parquet(tmp_path / "steps/a/predictions.parquet").height == 48  # all held rows


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_steps_go_on_into_the_next_epoch(toy_cache: Cache, tmp_path: Path, schedule: str) -> None:
    train(toy_cache, tmp_path / "epochs", student(epochs=2, schedule=schedule, warmup_epochs=0.5))
    train(
        toy_cache,
        tmp_path / "steps",
        student(epochs=None, max_steps=2 * EPOCH, schedule=schedule, warmup_steps=EPOCH // 2),
    )
    assert weights(tmp_path / "steps") == weights(tmp_path / "epochs")


def test_evaluation_by_steps_changes_no_weight_and_its_rows_add_up_to_the_epochs(
    toy_cache: Cache, tmp_path: Path
) -> None:
    events: list[Event] = []
    options = {"objective": [LABELS, KD], "options": {"hidden": [16], "dropout": 0.2}, "epochs": 2}
    train(toy_cache, tmp_path / "whole", student(**options))
    train(toy_cache, tmp_path / "parts", student(**options, evaluate_every_steps=4), report=events.append)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "parts")
    assert parts["step"].to_list() == [4, EPOCH, 8, 2 * EPOCH]
    assert parts["epoch"].to_list() == [1, 1, 2, 2]
    for column in ("train_loss", "term labels"):
        first, second = whole[column]
        four, six, eight, twelve = parts[column]
        assert [(4 * four + 2 * six) / 6, (2 * eight + 4 * twelve) / 6] == pytest.approx([first, second], rel=1e-6)
    assert parts["accuracy"].to_list()[1::2] == whole["accuracy"].to_list()
    told = [(type(event), event.metrics.step) for event in events if isinstance(event, EpochDone | WithinEpoch)]
    assert told == [(WithinEpoch, 4), (EpochDone, 6), (WithinEpoch, 8), (EpochDone, 12)]


@pytest.mark.parametrize(("figure", "least"), [("cross_entropy", True), ("accuracy", False)])
def test_the_best_by_a_figure_is_exported_and_told(toy_cache: Cache, tmp_path: Path, figure: str, least: bool) -> None:
    # a rate that is too high: its figures go up and down
    options = ALL_OF_IT | {"best_by": figure, "ema_decay": None, "learning_rate": 2.0}
    record = train(toy_cache, tmp_path, student(**options))
    found = metrics(tmp_path).sort(figure, "step", descending=[not least, False])
    best, last = found.row(0, named=True), metrics(tmp_path).row(-1, named=True)
    assert best["step"] != last["step"]
    assert (record.best_by, record.step, record.steps) == (figure, best["step"], 2 * EPOCH + 2)
    assert [getattr(record, name) for name in ("accuracy", "cross_entropy")] == [
        best[name] for name in ("accuracy", "cross_entropy")
    ]


def test_without_a_figure_and_patience_the_last_weights_are_exported(toy_cache: Cache, tmp_path: Path) -> None:
    record = train(toy_cache, tmp_path, student())
    assert (record.best_by, record.step, record.epoch) == (None, 3 * EPOCH, 3)


def test_patience_counts_evaluations(toy_cache: Cache, tmp_path: Path) -> None:
    options = STEPS | {"max_steps": 200, "learning_rate": 2.0, "evaluate_every_steps": 2, "best_by": "cross_entropy"}
    record = train(toy_cache, tmp_path, student(**options, patience_evaluations=2))
    entropy = metrics(tmp_path)["cross_entropy"].to_list()
    best = entropy.index(min(entropy))
    assert len(entropy) == best + 3
    assert record.steps == 2 * len(entropy)
    assert record.step == metrics(tmp_path)["step"][best]


@pytest.mark.parametrize("calls", [1, 4, 5, 7, 9, 15, 24, 30])
def test_a_run_that_is_stopped_anywhere_ends_as_if_it_was_not(toy_cache: Cache, tmp_path: Path, calls: int) -> None:
    options = student(**ALL_OF_IT)
    whole = train(toy_cache, tmp_path / "whole", options)
    with pytest.raises(Interrupted):
        train(toy_cache, tmp_path / "parts", options, stop=stop_after(calls))
    record = train(toy_cache, tmp_path / "parts", options)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    timed = ("seconds", "rows_per_s")
    assert metrics(tmp_path / "parts").drop(timed).equals(metrics(tmp_path / "whole").drop(timed))
    assert (record.step, record.steps) == (whole.step, whole.steps)
    assert all(steps(tmp_path / "parts", n).equals(steps(tmp_path / "whole", n)) for n in (1, 2, 3))


@pytest.mark.parametrize("stacking", ["always", "never"])
def test_what_ends_by_steps_and_what_by_epochs_do_not_notice_each_other(
    toy_cache: Cache, tmp_path: Path, stacking: str
) -> None:
    students = [
        student("a", **STEPS, max_steps=3),
        student("b", **STEPS | {"epochs": 2}, evaluate_every_steps=4),
        student("c", **STEPS, max_steps=EPOCH + 1, seed=1),
        student("d", **STEPS, max_steps=2, batch_size=64),
    ]
    events: list[Event] = []
    request = request_of(toy_cache, tmp_path / "together", *students)
    fleet = FleetOptions.model_validate({"stacking": stacking})
    train_students(
        Request(request.cache, request.runs, request.data, request.students, "cpu", fleet), report=events.append
    )
    ended = [event.record.student for event in events if isinstance(event, StudentFinished)]
    assert ended == ["a", "d", "c", "b"]  # after 96, 128 rows of the first epoch, 32 of the second, all of it
    for each in students:
        train(toy_cache, tmp_path / "alone", each)
        assert metrics(tmp_path / "together", each.name)["step"].to_list() == (
            metrics(tmp_path / "alone", each.name)["step"].to_list()
        )
        found, expected = (
            load_file(tmp_path / how / each.name / "student.safetensors") for how in ("together", "alone")
        )
        assert all(found[name].allclose(expected[name], atol=1e-5) for name in expected)


def test_the_seconds_of_evaluations_are_those_of_the_run(toy_cache: Cache, tmp_path: Path) -> None:
    record = train(toy_cache, tmp_path, student(**ALL_OF_IT))
    found = metrics(tmp_path)
    rows = (found["rows_per_s"] * found["seconds"]).to_list()
    assert rows == pytest.approx([128, 64, 64, 128, 64])  # of 32 a step, since the evaluation before
    assert isinstance(record, RunRecord)
    assert record.seconds > found["seconds"].sum()


def test_trackers_are_told_each_step_once(toy_cache: Cache, tmp_path: Path) -> None:
    told: list[int] = []
    ends: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, EpochDone | WithinEpoch):
            points = epoch_points(tmp_path / "a", event.metrics, ends[-1] if ends else 0)
            told.extend(point.step for point in points if point.tag == "step/train_loss")
            ends.extend(point.step for point in points if point.tag == "epoch/train_loss")

    train(toy_cache, tmp_path, student(**ALL_OF_IT), report=listen)
    assert told == list(range(1, 2 * EPOCH + 3))
    assert ends == [4, EPOCH, 8, 2 * EPOCH, 2 * EPOCH + 2]
