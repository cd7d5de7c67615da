"""Whatever is read again of a run's folder has a digest: of one bit more or less, nothing is believed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from storage.cache import Cache
from storage.errors import CorruptObject, Interrupted, StillroomError
from storage.format.sealed import read_json
from student_train.comparing.answers import read_answers
from student_train.preparing.dry_run import dry_run
from student_train.report import write_report
from student_train.run_files.checkpoint import NEXT_FILE, settle_checkpoint
from student_train.run_files.comparison import compare_runs
from student_train.run_files.history import read_metrics, read_steps
from student_train.run_files.position import read_position
from student_train.run_files.predictions import read_predictions, write_predictions
from student_train.run_files.records import read_job, read_record
from student_train.running.train import train_students
from student_train.students import load_student
from tests.damage import flipped
from tests.student_train.running.test_loop import stop_after
from tests.student_train.toys import KD, request_of, student

READ: dict[str, Callable[[Path], Any]] = {
    "run.json": read_record,
    "checkpoint.json": read_position,
    NEXT_FILE: settle_checkpoint,
    "metrics.parquet": read_metrics,
    "steps/00002.parquet": lambda folder: read_steps(folder, 2),
    "predictions.parquet": read_predictions,
    "job.toml": lambda folder: read_job(folder, read_record(folder)),
    "student.json": load_student,
    "student.safetensors": load_student,
}
FLIPS = 400


@pytest.fixture(scope="module")
def folder(toy_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run, with the checkpoint of one that was interrupted beside."""
    runs = tmp_path_factory.mktemp("runs")
    request = request_of(toy_cache, runs, student(objective=[KD]))
    with pytest.raises(Interrupted):
        train_students(request, stop=stop_after(10 + 6 + 2 + 3))
    kept = shutil.copytree(runs / "a", runs / "kept")
    train_students(request)
    for path in kept.glob("checkpoint*"):
        shutil.copy(path, runs / "a" / path.name)
    shutil.copy(runs / "a/checkpoint.json", runs / "a" / NEXT_FILE)
    return runs / "a"


@pytest.mark.parametrize("name", READ)
def test_of_all_flipped_bits_none_is_believed(folder: Path, tmp_path: Path, name: str) -> None:
    damaged = shutil.copytree(folder, tmp_path / "a")
    whole = (folder / name).read_bytes()
    for bit in random.Random(name).sample(range(8 * len(whole)), FLIPS):
        (damaged / name).write_bytes(flipped(whole, bit))
        with pytest.raises(CorruptObject) as fault:
            READ[name](damaged)
        assert str(damaged / name) in fault.value.what
        assert fault.value.do is not None
    (damaged / name).write_bytes(whole)
    READ[name](damaged)


@pytest.mark.parametrize("read", [read_predictions, read_answers])
def test_predictions_of_another_training_are_not_believed(
    folder: Path, tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    other = shutil.copytree(folder, tmp_path / "a")
    predictions = read_predictions(folder)
    assert predictions is not None
    write_predictions(other, replace(predictions, num_rows=predictions.num_rows + 1))  # whole, with a seal of its own
    with pytest.raises(CorruptObject) as refused:
        read(other)
    assert "do not match the digest in run.json" in str(refused.value.found)
    read(folder)


@pytest.mark.parametrize("name", ["run.json", "checkpoint.json"])
def test_every_command_names_the_damaged_file(toy_cache: Cache, folder: Path, tmp_path: Path, name: str) -> None:
    damaged = shutil.copytree(folder, tmp_path / "runs/a")
    if name == "checkpoint.json":
        (damaged / "run.json").unlink()
    whole = (damaged / name).read_bytes()
    (damaged / name).write_bytes(flipped(whole, 8 * whole.index(b'"epoch": ') + 8 * len('"epoch": ')))  # 3 is 2 now
    request = request_of(toy_cache, tmp_path / "runs", student(objective=[KD]))
    commands: list[Callable[[], Any]] = [
        lambda: train_students(request),
        lambda: dry_run(request),
        lambda: compare_runs(request.runs),
    ]
    for command in commands:
        with pytest.raises(CorruptObject, match=name):
            command()
    written = write_report(request.runs)
    assert written.exit_code == CorruptObject.exit_code
    assert name in "\n".join(written.notices)


@pytest.mark.parametrize("name", ["run.json", "checkpoint.json", "student.json"])
def test_what_was_written_before_there_were_seals_is_read(folder: Path, tmp_path: Path, name: str) -> None:
    old = shutil.copytree(folder, tmp_path / "a")
    value = read_json(folder / name) | {"format_version": 1}
    (old / name).write_text(json.dumps(value))
    READ[name](old)
    (old / name).write_text(json.dumps(value | {"format_version": 2}))  # which has a seal
    with pytest.raises(CorruptObject, match=name):
        READ[name](old)


def test_metrics_that_were_written_before_there_were_seals_are_read(folder: Path, tmp_path: Path) -> None:
    metrics = read_metrics(folder)
    assert metrics is not None
    metrics.write_parquet(tmp_path / "metrics.parquet")
    assert (tmp_path / "metrics.parquet").read_bytes() != (folder / "metrics.parquet").read_bytes()
    found = read_metrics(tmp_path)
    assert found is not None
    assert found.equals(metrics)


def test_whoever_reads_parquet_reads_a_runs_figures(folder: Path) -> None:
    found = read_metrics(folder)
    assert found is not None
    assert pl.read_parquet(folder / "metrics.parquet").equals(found)


def test_a_fault_ends_with_the_exit_code_of_corruption(folder: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(folder, tmp_path / "a")
    (damaged / "run.json").write_bytes(b"")
    with pytest.raises(StillroomError) as fault:
        read_record(damaged)
    assert fault.value.exit_code == 65
