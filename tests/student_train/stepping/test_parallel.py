"""One student on two processes: the same rows, the same gradient, the same student."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from storage.cache import Cache
from storage.errors import BadRequest
from student_train.feed.batches import Batch
from student_train.preparing.prepare import prepare
from student_train.preparing.request import Request
from student_train.run_files.records import RunRecord
from student_train.running.train import train_students
from student_train.stepping.parallel import Parallel
from tests.language.toys import counting_cache, small_gpt
from tests.student_train.toys import BATCH_NORM, HINT, KD, LABELS, request_of, student

JOB = """
cache = {cache!r}
runs = {runs!r}
train = "{dataset}/train"
validation = "{dataset}/validation"
student = {students}
"""


def torchrun(
    job: Path, processes: int = 2, *, more: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("student"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["--no-python", program, "train", str(job), "--device", "cpu", "--json", *more]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def write(folder: Path, cache: Cache, dataset: str, *students: dict[str, Any]) -> Path:
    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {toml(below)}" for key, below in value.items()) + "}"
        return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)

    path = folder / "job.students.toml"
    path.write_text(
        JOB.format(cache=cache.url, runs=str(folder / "runs"), dataset=dataset, students=toml(list(students)))
    )
    return path


def same(ours: Path, theirs: Path) -> bool:
    found, expected = (load_file(folder / "student.safetensors") for folder in (ours, theirs))
    return all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-4) for name in expected)


@pytest.mark.parametrize(("rows", "size"), [(7, 2), (2, 3), (8, 4)])
def test_every_row_of_a_batch_is_one_processs(rows: int, size: int) -> None:
    batch = Batch(torch.arange(rows), torch.arange(rows))
    parts = [Parallel(rank, size).part(batch) for rank in range(size)]
    assert sorted(torch.cat([part.inputs for part in parts]).tolist()) == list(range(rows))
    assert all(torch.equal(part.inputs, part.labels_B) for part in parts if part.labels_B is not None)


@pytest.mark.parametrize("rows", range(2, 12))
@pytest.mark.parametrize("size", [1, 2, 4])
def test_no_process_trains_on_a_single_row(rows: int, size: int) -> None:
    parts = [Parallel(rank, size).part(Batch(torch.arange(rows)), least=2).shown for rank in range(size)]
    assert sorted(torch.cat(parts).tolist()) == list(range(rows))
    assert 1 not in map(len, parts)


class Trained(NamedTuple):
    """Students that one process has trained, in the folder `one`, and two processes, in `runs`; what both told."""

    folder: Path
    by_one: dict[str, RunRecord]
    by_two: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def trained(toy_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    # 192 rows in batches of 25: the last has 17, so that the two processes have different numbers of rows.
    objective = [LABELS | {"weight": 0.5}, KD, HINT]
    whole = student("whole", optimizer="sgd", learning_rate=0.05, batch_size=25, objective=objective, ema_decay=0.9)
    hint = student("hint", objective=[HINT], weight_decay=0.5, learning_rate=0.05)
    summary = train_students(request_of(toy_cache, folder / "one", whole, hint))
    options = (each.model_dump(mode="json", exclude_none=True) for each in (whole, hint))
    done = torchrun(write(folder, toy_cache, "toy", *options))
    assert done.returncode == 0, done.stderr
    by_two = {record["student"]: record for record in json.loads(done.stdout)["students"]}
    return Trained(folder, {record.student: record for record in summary.records}, by_two)


@pytest.mark.slow
def test_two_processes_train_the_student_of_one(trained: Trained) -> None:
    record, found = trained.by_one["whole"], trained.by_two["whole"]
    assert same(trained.folder / "runs/whole", trained.folder / "one/whole")
    assert found["accuracy"] == pytest.approx(record.accuracy, abs=0.05)
    assert found["cross_entropy"] == pytest.approx(record.cross_entropy, rel=1e-3)
    ours, theirs = (pl.read_parquet(trained.folder / how / "whole/metrics.parquet") for how in ("runs", "one"))
    assert ours["train_loss"].to_list() == pytest.approx(theirs["train_loss"].to_list(), rel=1e-4)


@pytest.mark.slow
def test_a_dry_run_is_told_once_by_all_processes_together(toy_cache: Cache, tmp_path: Path) -> None:
    job = write(tmp_path, toy_cache, "toy", student().model_dump(mode="json", exclude_none=True))
    done = torchrun(job, more=["--dry-run"])
    assert done.returncode == 0, done.stderr
    assert [each["action"] for each in json.loads(done.stdout)["students"]] == ["train"]  # one JSON value, not two


@pytest.mark.slow
def test_batch_norm_trains_on_two_processes_to_the_last_rows(toy_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(BATCH_NORM)
    own = student(architecture=f"{tmp_path}/m.py:net", options={}, batch_size=95)  # 192 rows: the last batch has 2
    done = torchrun(write(tmp_path, toy_cache, "toy", own.model_dump(mode="json", exclude_none=True)))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_train_the_transformer_of_one(tmp_path: Path) -> None:
    cache = counting_cache(tmp_path, rows=40)
    options = small_gpt(optimizer="sgd", learning_rate=0.05, batch_size=5)
    one = Request(cache, tmp_path / "one", request_of(cache, tmp_path).data, (options,), "cpu")
    rows = one.data.model_copy(update={"train": "counting/train", "validation": "counting/validation"})
    train_students(Request(cache, tmp_path / "one", rows, (options,), "cpu"))
    done = torchrun(write(tmp_path, cache, "counting", options.model_dump(mode="json", exclude_none=True)))
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "runs/gpt", tmp_path / "one/gpt")


def test_losses_that_compare_rows_are_refused_on_several_processes(toy_cache: Cache, tmp_path: Path) -> None:
    from dataclasses import replace

    rkd = HINT | {"loss": "rkd"}
    request = replace(request_of(toy_cache, tmp_path, student(objective=[rkd])), parallel=Parallel(0, 2))
    with pytest.raises(BadRequest, match="compare the rows of a batch"):
        prepare(request)


@pytest.mark.slow
def test_a_mistake_is_told_by_every_process_and_ends_them(toy_cache: Cache, tmp_path: Path) -> None:
    options = student(objective=[KD | {"teacher": "nobody"}]).model_dump(mode="json", exclude_none=True)
    done = torchrun(write(tmp_path, toy_cache, "toy", options))
    assert done.returncode != 0
    assert "NotInCache" in done.stderr


@pytest.mark.slow
def test_a_student_that_another_command_holds_is_left_out_by_all_processes(toy_cache: Cache, tmp_path: Path) -> None:
    held, free = (student(name).model_dump(mode="json", exclude_none=True) for name in ("held", "free"))
    job = write(tmp_path, toy_cache, "toy", held, free)
    (tmp_path / "runs/held").mkdir(parents=True)
    with open(tmp_path / "runs/held/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = torchrun(job)
    assert "another process is training held" in done.stderr
    assert "gloo" not in done.stderr  # as where one process waits for another that is elsewhere
    assert "train_students" not in done.stderr  # in no traceback
    assert (tmp_path / "runs/free/run.json").exists()


@pytest.mark.slow
def test_a_layer_that_no_loss_reaches_stays_as_it_was_on_any_number_of_processes(trained: Trained) -> None:
    assert same(trained.folder / "runs/hint", trained.folder / "one/hint")
