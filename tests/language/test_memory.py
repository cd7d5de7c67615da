"""What students of tokens hold, against what was projected, and against logits of a whole batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from student_train.options.sections import StudentOptions
from tests.benchmarks.memory import peak_bytes, run_json
from tests.benchmarks.programs import program, write_students
from tests.language.toys import small_gpt
from tests.student_train.preparing.test_memory import PROJECT
from tests.teacher_cache.toys import build, write_job

ROWS, LENGTH, IDS, BATCH = 32, 256, 50_000, 16


def output_of(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.slow
@pytest.mark.alone
def test_the_peak_is_as_projected_and_far_below_a_batchs_logits(tmp_path: Path) -> None:
    students = write_cache_and_students(tmp_path, 1)
    job = json.dumps([each.model_dump(mode="json", exclude_none=True) for each in students])
    rows = json.dumps({"train": "t/train", "validation": "t/validation"})
    arguments = [str(tmp_path / "cache"), str(tmp_path / "runs"), job, rows]
    projected = int(output_of("-c", PROJECT, *arguments))
    peak = json.loads(output_of("-m", "tests.student_train.trainer", *arguments).splitlines()[-1])["peak_bytes"]
    assert 1 / 1.3 <= peak / projected <= 1.3, (peak, projected)
    assert peak < 4 * BATCH * LENGTH * IDS  # of float32 logits, beside all else that there is


@pytest.mark.slow
@pytest.mark.alone
def test_a_stack_of_tokens_holds_what_was_projected(tmp_path: Path) -> None:
    students = write_cache_and_students(tmp_path, 4)
    fleet = [each.model_dump(mode="json", exclude_defaults=True) for each in students]
    train = program(
        "student", "train", write_students(tmp_path / "job.toml", fleet, "t", stacking="always"), "--device", "cpu"
    )
    projected = run_json([*train, "--dry-run", "--json"])["memory"]["host_bytes"]
    peak = peak_bytes(train, children=False)
    assert 1 / 1.3 <= peak / projected <= 1.3, (peak, projected)


def write_cache_and_students(folder: Path, number: int) -> list[StudentOptions]:
    """Write a cache of random tokens; return so many students of them."""
    np.save(folder / "t.npy", np.random.default_rng(0).integers(0, IDS, ROWS * LENGTH))
    section = (
        f'[[dataset]]\nname = "t"\nkind = "tokens"\npath = "t.npy"\nvocabulary = {IDS}\nblock = {LENGTH}\n'
        "validation = 0.2\n"
    )
    build(write_job(folder, section))
    options = {"depth": 2, "width": 32, "heads": 4}
    common = {"options": options, "objective": [{"loss": "labels"}], "epochs": 1, "batch_size": BATCH}
    return [small_gpt(f"s{seed}", seed=seed, **common) for seed in range(number)]
