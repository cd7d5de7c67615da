"""Metrics in TensorBoard's event files and MLflow's store, read back with their own libraries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from storage.cache import Cache
from storage.errors import BadRequest, Interrupted
from student_train.options.sections import FleetOptions, StudentOptions
from student_train.preparing.dry_run import dry_run
from student_train.preparing.request import Request
from student_train.running.events import Event, TrackerFailed
from student_train.running.train import train_students
from student_train.stepping.parallel import Parallel
from tests.damage import flipped
from tests.student_train.running.test_loop import stop_after, weights
from tests.student_train.toys import KD, LABELS, request_of, student

BOTH: dict[str, Any] = {"objective": [LABELS, KD]}
STEPS = 6  # of an epoch of the toy rows
MID_SECOND_EPOCH = 10 + STEPS + 2 + 3  # questions whether to stop


def tracked(cache: Cache, runs: Path, *students: StudentOptions, **track: Any) -> Request:
    request = request_of(cache, runs, *students)
    fleet = FleetOptions.model_validate({"track": track})
    return Request(cache, runs, request.data, request.students, "cpu", fleet)


def events_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_below_a_folder_whose_name_could_be_a_pattern_all_is_tracked(toy_cache: Cache, tmp_path: Path) -> None:
    runs = tmp_path / "set[1]/x*"
    train_students(tracked(toy_cache, runs, student("a"), tensorboard=True, mlflow=str(runs / "mlflow")))
    steps = [step for step, _ in events_of(runs / "a")["step/train_loss"]]
    assert steps == list(range(1, 3 * STEPS + 1))
    run = mlflow_runs(runs / "mlflow")["a"]
    assert [step for step, _ in history(runs / "mlflow", run, "step/train_loss")] == steps


def mlflow_runs(folder: Path, experiment: str = "stillroom") -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(str(folder))
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def history(folder: Path, run: Any, tag: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [
        (metric.step, metric.value) for metric in MlflowClient(str(folder)).get_metric_history(run.info.run_id, tag)
    ]


def in_fp32(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return points as an event file keeps them."""
    return [(step, float(np.float32(value))) for step, value in points]


def of_parquet(folder: Path, column: str) -> list[tuple[int, float]]:
    steps = pl.concat([pl.read_parquet(path) for path in sorted((folder / "steps").iterdir())])
    return list(enumerate(steps[column].to_list(), 1))


def test_event_files_have_every_step_and_epoch_of_every_student(toy_cache: Cache, tmp_path: Path) -> None:
    train_students(tracked(toy_cache, tmp_path, student("a", **BOTH), student("b"), tensorboard=True))
    events = events_of(tmp_path / "a")
    assert events["step/train_loss"] == in_fp32(of_parquet(tmp_path / "a", "train_loss"))
    assert events["step/term_kd_sage"] == in_fp32(of_parquet(tmp_path / "a", "term kd:sage"))
    assert events["step/learning_rate"] == in_fp32(of_parquet(tmp_path / "a", "learning_rate"))
    metrics = pl.read_parquet(tmp_path / "a/metrics.parquet")
    for column in ("accuracy", "cross_entropy", "agreement", "share kd:sage", "rows_per_s"):
        expected = list(zip((STEPS, 2 * STEPS, 3 * STEPS), metrics[column].to_list(), strict=True))
        assert events[f"epoch/{re.sub('[ :]', '_', column)}"] == in_fp32(expected)
    assert "epoch/agreement" not in events_of(tmp_path / "b")


def test_a_steps_events_are_there_once_after_an_interruption(toy_cache: Cache, tmp_path: Path) -> None:
    request = tracked(toy_cache, tmp_path, tensorboard=True)
    with pytest.raises(Interrupted):
        train_students(request, stop=stop_after(MID_SECOND_EPOCH))
    train_students(request)
    assert events_of(tmp_path / "a")["step/train_loss"] == in_fp32(of_parquet(tmp_path / "a", "train_loss"))


def test_events_of_another_job_before_are_taken_back(toy_cache: Cache, tmp_path: Path) -> None:
    diverging = student(optimizer="sgd", learning_rate=1000.0, epochs=9)
    assert train_students(tracked(toy_cache, tmp_path, diverging, tensorboard=True)).errors
    train_students(tracked(toy_cache, tmp_path, student(), tensorboard=True))
    assert events_of(tmp_path / "a")["step/train_loss"] == in_fp32(of_parquet(tmp_path / "a", "train_loss"))


def test_mlflow_has_one_run_for_each_student(toy_cache: Cache, tmp_path: Path) -> None:
    store = tmp_path / "mlflow"
    students = student("a", **BOTH), student("b")
    train_students(tracked(toy_cache, tmp_path, *students, mlflow=str(store), experiment="toys"))
    runs = mlflow_runs(store, "toys")
    assert {name: run.info.status for name, run in runs.items()} == {"a": "FINISHED", "b": "FINISHED"}
    assert (runs["a"].data.params["architecture"], runs["a"].data.params["learning_rate"]) == ("mlp", "0.01")
    assert json.loads(runs["a"].data.params["objective"])[1]["loss"] == "kd"
    assert history(store, runs["a"], "step/term_kd_sage") == of_parquet(tmp_path / "a", "term kd:sage")
    accuracy = pl.read_parquet(tmp_path / "a/metrics.parquet")["accuracy"].to_list()
    assert history(store, runs["a"], "epoch/accuracy") == list(
        zip((STEPS, 2 * STEPS, 3 * STEPS), accuracy, strict=True)
    )


def test_an_interrupted_student_goes_on_in_its_mlflow_run(toy_cache: Cache, tmp_path: Path) -> None:
    store = tmp_path / "mlflow"
    request = tracked(toy_cache, tmp_path, mlflow=str(store))
    with pytest.raises(Interrupted):
        train_students(request, stop=stop_after(MID_SECOND_EPOCH))
    before = mlflow_runs(store)["a"].info
    train_students(request)
    after = mlflow_runs(store)["a"]
    assert (before.status, after.info.status, after.info.run_id) == ("KILLED", "FINISHED", before.run_id)
    assert history(store, after, "step/train_loss") == of_parquet(tmp_path / "a", "train_loss")


def test_a_damaged_note_of_which_mlflow_run_it_was_is_told_and_not_followed(toy_cache: Cache, tmp_path: Path) -> None:
    request = tracked(toy_cache, tmp_path, mlflow=str(tmp_path / "mlflow"))
    with pytest.raises(Interrupted):
        train_students(request, stop=stop_after(MID_SECOND_EPOCH))
    note = tmp_path / "a/mlflow.json"
    whole = note.read_bytes()
    note.write_bytes(flipped(whole, 8 * (whole.index(b'"run_id": "') + len('"run_id": "'))))
    events: list[Event] = []
    assert not train_students(request, report=events.append).errors
    (failed,) = [event for event in events if isinstance(event, TrackerFailed)]
    assert (failed.tracker, "digest" in failed.why) == ("MLflow", True)


def test_an_epoch_that_is_trained_twice_is_in_mlflow_once(toy_cache: Cache, tmp_path: Path) -> None:
    store = tmp_path / "mlflow"
    request = tracked(toy_cache, tmp_path, mlflow=str(store))
    train_students(request)
    (tmp_path / "a/run.json").unlink()
    train_students(request)
    runs = mlflow_runs(store)
    assert history(store, runs["a"], "step/train_loss") == of_parquet(tmp_path / "a", "train_loss")


def test_a_student_of_another_job_has_an_mlflow_run_of_its_own(toy_cache: Cache, tmp_path: Path) -> None:
    store = tmp_path / "mlflow"
    diverging = student(optimizer="sgd", learning_rate=1000.0, epochs=9)
    assert train_students(tracked(toy_cache, tmp_path, diverging, mlflow=str(store))).errors
    failed = mlflow_runs(store)["a"]
    train_students(tracked(toy_cache, tmp_path, student(), mlflow=str(store)))
    assert failed.info.status == "FAILED"
    assert json.loads((tmp_path / "a/mlflow.json").read_text())["run_id"] != failed.info.run_id


def test_tracking_changes_neither_weights_nor_identity(toy_cache: Cache, tmp_path: Path) -> None:
    students = student("a", **BOTH, options={"hidden": [16], "dropout": 0.2}), student("b", seed=1)
    plain = train_students(tracked(toy_cache, tmp_path / "plain", *students))
    track = {"tensorboard": True, "mlflow": str(tmp_path / "mlflow")}
    told = train_students(tracked(toy_cache, tmp_path / "told", *students, **track))
    assert weights(tmp_path / "told") == weights(tmp_path / "plain")
    assert weights(tmp_path / "told", "b") == weights(tmp_path / "plain", "b")
    assert [record.identity for record in told.records] == [record.identity for record in plain.records]


def test_a_tracker_that_fails_is_told_once_and_training_goes_on(toy_cache: Cache, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensorboard").write_text("a file where the folder should be")
    events: list[Event] = []
    request = tracked(
        toy_cache, tmp_path, student("a"), student("b"), tensorboard=True, mlflow=str(tmp_path / "mlflow")
    )
    assert train_students(request, report=events.append).exit_code == 0
    (failed,) = [event for event in events if isinstance(event, TrackerFailed)]
    assert failed.tracker == "TensorBoard"
    assert "exist" in failed.why.lower()
    assert set(mlflow_runs(tmp_path / "mlflow")) == {"a", "b"}


def test_an_mlflow_store_that_cannot_be_opened_is_refused(toy_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "mlflow").write_text("a file")
    with pytest.raises(BadRequest, match=r"MLflow cannot open .*/mlflow"):
        train_students(tracked(toy_cache, tmp_path / "runs", mlflow=str(tmp_path / "mlflow")))
    assert not (tmp_path / "runs").exists()


def test_the_password_of_an_mlflow_store_that_cannot_be_opened_is_not_told(toy_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        train_students(tracked(toy_cache, tmp_path / "runs", mlflow="postgresql://me:hidden@localhost:1/db"))
    assert refused.value.what == "MLflow cannot open postgresql://…@localhost:1/db"
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(("package", "track"), [("tensorboard", {"tensorboard": True}), ("mlflow", {"mlflow": "m"})])
def test_a_missing_package_is_refused_before_the_first_step(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, track: dict[str, Any]
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == package or n.startswith(f"torch.utils.{package}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself does to forbid an import
    for action in (train_students, dry_run):
        with pytest.raises(BadRequest) as refused:
            action(tracked(toy_cache, tmp_path / "runs", **track))
        assert refused.value.do == f".venv/bin/pip install -c constraints.txt -e '.[{package}]'"
    assert not (tmp_path / "runs").exists()


def test_only_the_first_process_of_several_tracks(toy_cache: Cache, tmp_path: Path) -> None:
    request = tracked(toy_cache, tmp_path, tensorboard=True)
    train_students(Request(toy_cache, tmp_path, request.data, request.students, "cpu", request.fleet, Parallel(rank=1)))
    assert not (tmp_path / "a/tensorboard").exists()


def test_a_job_that_tracks_nothing_imports_no_tracker(toy_cache: Cache, tmp_path: Path) -> None:
    job = json.dumps([student(epochs=1).model_dump(mode="json", exclude_none=True)])
    command = [sys.executable, "-m", "tests.student_train.trainer", toy_cache.url, str(tmp_path), job, "{}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    modules = json.loads(output.splitlines()[-1])["modules"]
    assert {name.split(".")[0] for name in modules} & {"tensorboard", "mlflow"} == set()


def test_an_experiment_without_mlflow_is_refused() -> None:
    with pytest.raises(ValueError, match="experiment is MLflow's"):
        FleetOptions.model_validate({"track": {"experiment": "toys"}})
