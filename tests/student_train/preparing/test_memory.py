from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.cache import Cache
from student_train.preparing.dry_run import dry_run
from student_train.preparing.prepare import prepare
from student_train.preparing.weighing import step_memory as memory
from student_train.preparing.weighing.step_memory import StepBytes, measure_step
from student_train.running.train import train_students
from tests.student_train.running.test_loop import EVERYTHING, stop_after
from tests.student_train.toys import KD, LABELS, Recipe, request_of, student, write_cache

PROJECT = """
import json, sys
from pathlib import Path
import torch
from storage.cache import Cache
from student_train.preparing.weighing import step_memory as memory
from student_train.preparing.dry_run import dry_run
from student_train.options.sections import DataOptions, StudentOptions
from student_train.preparing.request import Request
torch.set_num_threads(1)
options = tuple(StudentOptions.model_validate(student) for student in json.loads(sys.argv[3]))
rows = DataOptions.model_validate({"train": "toy/train", "validation": "toy/validation"} | json.loads(sys.argv[4]))
print(dry_run(Request(Cache.open(sys.argv[1]), Path(sys.argv[2]), rows, options, "cpu")).memory.host_bytes)
"""


def measured(cache: Cache, runs: Path, **options: Any) -> StepBytes:
    return measure_step(prepare(request_of(cache, runs, student(**options)))[0])


def test_weights_gradients_and_state_are_counted(toy_cache: Cache, tmp_path: Path) -> None:
    step = measured(toy_cache, tmp_path, ema_decay=0.9, patience_epochs=1)
    # 660 parameters of 4 bytes; mean and std; AdamW's two moments and a step count for each of four tensors
    assert (step.weights, step.gradients, step.optimizer, step.copies) == (2648, 2640, 2 * 2640 + 16, 2 * 2648)


def test_activations_grow_with_the_batch(toy_cache: Cache, tmp_path: Path) -> None:
    small, large = (
        measured(toy_cache, tmp_path, architecture="cnn", options={}, batch_size=size).activations for size in (32, 64)
    )
    assert large == pytest.approx(2 * small, rel=0.1)


def test_projecting_changes_nothing(toy_cache: Cache, tmp_path: Path) -> None:
    dry_run(request_of(toy_cache, tmp_path / "runs", student(**EVERYTHING)))
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_what_would_be_done(toy_cache: Cache, tmp_path: Path) -> None:
    train_students(request_of(toy_cache, tmp_path, student("a")))
    with pytest.raises(Exception, match="stopped"):
        train_students(request_of(toy_cache, tmp_path, student("b")), stop=stop_after(10 + 6 + 2 + 3))
    plan = dry_run(request_of(toy_cache, tmp_path, student("a"), student("b"), student("c")))
    found = [(s.student, s.action, s.done_epochs, s.epochs, s.train_rows, s.validation_rows) for s in plan.students]
    assert found == [("a", "skip", 3, 3, 192, 48), ("b", "resume", 1, 3, 192, 48), ("c", "train", 0, 3, 192, 48)]


def test_a_finished_job_needs_no_memory(toy_cache: Cache, tmp_path: Path) -> None:
    train_students(request_of(toy_cache, tmp_path, student("a")))
    assert dry_run(request_of(toy_cache, tmp_path, student("a"))).memory is None


def test_a_streams_bound_does_not_grow_with_the_cache(tmp_path: Path) -> None:
    parts = []
    for rows in (500, 1000):
        cache = write_cache(tmp_path / str(rows), Recipe(rows=rows))
        bound = dry_run(request_of(cache, tmp_path / "runs", residency="stream", window_shards=2)).memory
        assert bound is not None
        parts.append(
            {name: size for name, size in bound.parts.items() if name not in ("libraries", "labels and order")}
        )
    assert parts[0] == parts[1]


RESNET = {"architecture": "resnet", "options": {"depth": 20, "width": 32}, "batch_size": 64, "ema_decay": 0.9}
WIDE = {"options": {"hidden": [4096, 4096]}, "ema_decay": 0.9, "patience_epochs": 2, "batch_size": 200}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Cache]:
    """Return a function that gives a cache of so many rows of 7 kB, written once."""
    folder = tmp_path_factory.mktemp("wide")
    recipe = Recipe(rows_per_shard=2000, shape=(3, 48, 48), features={})
    return functools.cache(lambda rows: write_cache(folder / str(rows), replace(recipe, rows=rows)))


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("rows", "data", "options"),
    [
        (60_000, {"residency": "device"}, {"objective": [LABELS, KD]}),
        (60_000, {"residency": "stream", "window_shards": 4}, {"objective": [LABELS, KD]}),
        (60_000, {"residency": "stream", "window_shards": 12}, {"objective": [LABELS, KD]}),
        (200, {}, RESNET),
        (500, {}, WIDE),
    ],
)
def test_the_peak_stays_within_its_bound(
    wide: Callable[[int], Cache], tmp_path: Path, rows: int, data: dict[str, Any], options: dict[str, Any]
) -> None:
    cache = wide(rows)
    job = json.dumps([student(**options, epochs=1).model_dump(mode="json", exclude_none=True)])
    arguments = [cache.url, str(tmp_path / "runs"), job, json.dumps(data)]
    projected = int(
        subprocess.run([sys.executable, "-c", PROJECT, *arguments], check=True, stdout=subprocess.PIPE).stdout
    )
    command = [sys.executable, "-m", "tests.student_train.trainer", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    peak_bytes = json.loads(output.splitlines()[-1])["peak_bytes"]
    assert 1 / 1.3 <= peak_bytes / projected <= 1.3


def test_a_model_that_meta_cannot_hold_is_measured_on_the_cpu(toy_cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import torch\n"
        "def own(num_classes, input_shape):\n"
        "    layer = torch.nn.Linear(36, num_classes)\n"
        "    assert layer.weight.sum().item() < 1e9\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), layer)\n"
    )
    step = measured(toy_cache, tmp_path / "runs", architecture=f"{tmp_path}/m.py:own", options={})
    assert (step.gradients, torch.get_default_device().type) == (4 * (36 * 4 + 4), "cpu")


def test_built_in_students_are_measured_without_allocating(
    toy_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    measure = memory._measure
    monkeypatch.setattr(memory, "_measure", lambda p, device: devices.append(device.type) or measure(p, device))
    for optimizer in ("sgd", "adamw"):
        measured(toy_cache, tmp_path, optimizer=optimizer, architecture="resnet", options={})
    assert devices == ["meta", "meta"]
