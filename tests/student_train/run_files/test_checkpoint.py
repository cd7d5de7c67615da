from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.cache import Cache
from storage.errors import CorruptObject, Interrupted, StaleCache, StorageFailure, UnsupportedFormat
from student_train.options.sections import StudentOptions
from student_train.run_files.checkpoint import (
    commit_checkpoint,
    read_checkpoint,
    settle_checkpoint,
    stage_checkpoint,
    write_checkpoint,
)
from student_train.run_files.position import Position
from student_train.running.train import train_students
from tests.damage import edit_json
from tests.student_train.running.test_loop import EVERYTHING, stop_after, train, weights
from tests.student_train.toys import Recipe, request_of, student, write_cache

IDENTITY = {"student": {"epochs": 3}, "cache": "c"}


def kill(cache: Cache, runs: Path, options: StudentOptions, when: int | list[float], *folders: str) -> int:
    """Return how many trainings were killed before one came to its end (`killer.py`)."""
    arguments = [cache.url, str(runs), options.model_dump_json(), json.dumps(when), *folders]
    command = [sys.executable, "-m", "tests.student_train.killer", *arguments]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


@pytest.mark.slow
def test_a_kill_at_any_write_of_a_run_changes_nothing(toy_cache: Cache, tmp_path: Path) -> None:
    options = student(**EVERYTHING, epochs=2, checkpoint_every_steps=4)
    train(toy_cache, tmp_path / "whole", options)
    kills = kill(toy_cache, tmp_path / "killed", options, 4, "many")
    assert kills > 10
    for moment in range(0, 4 * kills, 4):
        runs = tmp_path / "killed" / str(moment)
        train(toy_cache, runs, options)
        assert (weights(runs) == weights(tmp_path / "whole"), list(runs.rglob(".tmp-*"))) == (True, [])


BY_STEPS: dict[str, Any] = {
    "epochs": None,
    "patience_epochs": None,
    "max_steps": 11,
    "evaluate_every_steps": 4,
    "micro_batch_size": 8,
    "best_by": "cross_entropy",
    "schedule": "wsd",
    "decay_share": 0.5,
}


@pytest.mark.parametrize("budget", [{"epochs": 2}, BY_STEPS], ids=["epochs", "steps"])
def test_kills_one_after_another_still_end_in_the_same_weights(
    toy_cache: Cache, tmp_path: Path, budget: dict[str, Any]
) -> None:
    options = student(**EVERYTHING | budget, checkpoint_every_steps=2)
    train(toy_cache, tmp_path / "whole", options)
    assert kill(toy_cache, tmp_path / "killed", options, 21, "one") > 2
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_process_killed_at_any_time_resumes_to_the_same_weights(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe(rows=2000, rows_per_shard=300))
    options = student(**(EVERYTHING | {"patience_epochs": None, "options": {"hidden": [256, 256]}}), epochs=12)
    train(cache, tmp_path / "whole", options)
    assert kill(cache, tmp_path / "killed", options, [0.02, 0.3, 0.5]) > 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_checkpoint_is_json_and_safetensors_and_nothing_else(toy_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(toy_cache, tmp_path, student(), stop=stop_after(15))
    names = sorted(path.name for path in (tmp_path / "a").iterdir() if path.name != ".lock")
    checkpoint = json.loads((tmp_path / "a/checkpoint.json").read_text())
    assert names == sorted([checkpoint["weights_file"], "checkpoint.json"])
    assert (checkpoint["epoch"], checkpoint["step"], checkpoint["torch_version"]) == (0, 5, torch.__version__)


def test_a_finished_run_leaves_no_checkpoint(toy_cache: Cache, tmp_path: Path) -> None:
    train(toy_cache, tmp_path, student())
    names = {path.name for path in (tmp_path / "a").iterdir()}
    result = {"job.toml", "metrics.parquet", "predictions.parquet", "run.json", "steps"}
    assert names == result | {".lock", "student.json", "student.safetensors"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"epochs": 4}, "student.epochs = 3"),
        ({"seed": 1}, "student.seed = 0"),
        ({"options": {"hidden": [17]}}, "student.options.hidden = [16]"),
        ({"autocast": "bf16"}, 'student.autocast = "fp32"'),
    ],
)
def test_a_checkpoint_of_another_job_is_refused_field_by_field(
    toy_cache: Cache, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(Interrupted):
        train(toy_cache, tmp_path, student(), stop=stop_after(12))
    with pytest.raises(StaleCache) as refusal:
        train(toy_cache, tmp_path, student(**change))
    assert refusal.value.found == field


def test_a_checkpoint_of_another_cache_is_refused(toy_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(toy_cache, tmp_path, student(), stop=stop_after(12))
    other = write_cache(tmp_path / "other", Recipe())
    with pytest.raises(StaleCache) as refusal:
        train(other, tmp_path, student())
    assert (refusal.value.found, refusal.value.expected) == (f'cache = "{toy_cache.id}"', f'cache = "{other.id}"')


def test_a_checkpoint_of_other_rows_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe())
    with pytest.raises(Interrupted):
        train(cache, tmp_path, student(), stop=stop_after(12))
    with pytest.raises(StaleCache, match=r"data\.train, train_rows changed"):
        train(cache, tmp_path, student(), data={"train": "toy"})


def test_how_often_checkpoints_are_written_may_change(toy_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(toy_cache, tmp_path, student(), stop=stop_after(12))
    assert train(toy_cache, tmp_path, student(checkpoint_every_steps=1)).status == "finished"


def test_the_refusal_reads_as_every_error_does(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Position(), {}, IDENTITY)
    with pytest.raises(StaleCache) as refusal:
        read_checkpoint(tmp_path, IDENTITY | {"cache": "d"})
    assert str(refusal.value) == (
        f"StaleCache: {tmp_path} holds a run of another job: cache changed\n"
        '  found     cache = "c"\n'
        '  expected  cache = "d"\n'
        f"  do        put it back to go on; or give the student another name, or: rm -r {tmp_path}"
    )


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_damaged_weights_are_noticed(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_checkpoint(tmp_path, Position(), {"x": torch.ones(4)}, IDENTITY)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptObject, match="is not what was written"):
        read_checkpoint(tmp_path, IDENTITY)


def test_a_damaged_description_is_noticed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Position(), {}, IDENTITY)
    (tmp_path / "checkpoint.json").write_text('{"epoch": 1')
    with pytest.raises(CorruptObject, match="is not a checkpoint"):
        read_checkpoint(tmp_path, IDENTITY)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text('{"format_version": 3}')
    with pytest.raises(UnsupportedFormat):
        read_checkpoint(tmp_path, IDENTITY)


def test_a_checkpoint_never_names_a_file_of_another_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", Position(), {}, IDENTITY)
    (tmp_path / "secret").write_bytes(b"")
    edit_json(tmp_path / "run/checkpoint.json", weights_file="../secret")
    with pytest.raises(CorruptObject, match="run/secret is not there"):
        read_checkpoint(tmp_path / "run", IDENTITY)


def test_every_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(3, 4),
        "half": torch.randn(3).bfloat16(),
        "count": torch.tensor(7),
        "bytes": torch.get_rng_state(),
        "strided": torch.randn(4, 4).t(),
    }
    write_checkpoint(tmp_path, Position(epoch=2, step=5), tensors, IDENTITY)
    found = read_checkpoint(tmp_path, IDENTITY)
    assert found is not None
    assert (found[0].epoch, found[0].step) == (2, 5)
    assert all(torch.equal(found[1][name], tensor) for name, tensor in tensors.items())


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Position(epoch=1), {"x": torch.ones(4)}, IDENTITY)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # to the writer it is as if the disk were full
    try:
        with pytest.raises(StorageFailure, match="cannot write"):
            write_checkpoint(tmp_path, Position(epoch=2), {"x": torch.ones(4000)}, IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found = read_checkpoint(tmp_path, IDENTITY)
    assert found is not None
    assert (found[0].epoch, len(list(tmp_path.iterdir()))) == (1, 2)


STACK = ("a", "b", "c")


def stage(runs: Path, names: tuple[str, ...], step: int) -> None:
    for name in names:
        tensors = {"w": torch.full((3,), float(step))}
        stage_checkpoint(runs / name, Position(step=step, stacked=True, stack=STACK), tensors, IDENTITY)


def write_stack(runs: Path, step: int) -> None:
    for name in STACK:
        (runs / name).mkdir(exist_ok=True)
    stage(runs, STACK, step)
    for name in STACK:
        commit_checkpoint(runs / name)


def settled_steps(runs: Path) -> list[int | None]:
    """Settle all of the stack as the next command would; return the step of each, None without a checkpoint."""
    for name in STACK:
        settle_checkpoint(runs / name)
    found = [read_checkpoint(runs / name, IDENTITY) for name in STACK]
    for each in found:
        assert each is None or each[1]["w"].tolist() == [float(each[0].step)] * 3
    assert not list(runs.rglob("*.next.json"))
    return [None if each is None else each[0].step for each in found]


def test_what_a_stack_has_staged_counts_once_one_of_it_is_committed(tmp_path: Path) -> None:
    for name in STACK:
        (tmp_path / name).mkdir()
    stage(tmp_path, STACK, 1)
    assert settled_steps(tmp_path) == [None, None, None]  # killed before the first was committed
    stage(tmp_path, STACK, 2)
    commit_checkpoint(tmp_path / "b")
    assert settled_steps(tmp_path) == [2, 2, 2]  # and after
    stage(tmp_path, ("a", "b"), 3)  # and while they were staged
    assert settled_steps(tmp_path) == [2, 2, 2]
    write_stack(tmp_path, 4)
    assert settled_steps(tmp_path) == [4, 4, 4]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_a_full_disk_while_a_stack_is_staged_leaves_all_of_it_where_it_was(tmp_path: Path) -> None:
    write_stack(tmp_path, 1)
    stage(tmp_path, ("a",), 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(StorageFailure):
            stage(tmp_path, ("b",), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert settled_steps(tmp_path) == [1, 1, 1]


def test_a_stacks_folder_that_was_deleted_starts_again_alone(tmp_path: Path) -> None:
    write_stack(tmp_path, 1)
    shutil.rmtree(tmp_path / "b")
    assert settled_steps(tmp_path) == [1, None, 1]


def test_stopping_while_rows_are_loaded_loses_nothing(toy_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="before the first step"):
        train_students(request_of(toy_cache, tmp_path, student()), stop=stop_after(3))
    assert train(toy_cache, tmp_path, student()).status == "finished"


def test_tied_weights_come_back(tmp_path: Path) -> None:
    shared = torch.randn(6)
    write_checkpoint(tmp_path, Position(), {"a": shared, "b": shared, "part": shared[:2]}, IDENTITY)
    found = read_checkpoint(tmp_path, IDENTITY)
    assert found is not None
    assert (found[1]["a"].tolist(), found[1]["b"].tolist()) == (shared.tolist(), shared.tolist())
    assert found[1]["part"].tolist() == shared[:2].tolist()
