"""What a student of tokens holds, against what was projected, and against logits of a whole batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.language.toys import small_gpt
from tests.student_train.test_memory import PROJECT
from tests.teacher_cache.toys import build, write_job

ROWS, LENGTH, IDS, BATCH = 32, 256, 50_000, 16


def output_of(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.slow
def test_the_peak_is_as_projected_and_far_below_a_batchs_logits(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.random.default_rng(0).integers(0, IDS, ROWS * LENGTH))
    section = (
        f'[[dataset]]\nname = "t"\nkind = "tokens"\npath = "t.npy"\nvocabulary = {IDS}\nblock = {LENGTH}\n'
        "validation = 0.2\n"
    )
    build(write_job(tmp_path, section))
    student = small_gpt(
        options={"depth": 2, "width": 32, "heads": 4}, objective=[{"loss": "labels"}], epochs=1, batch_size=BATCH
    )
    job = json.dumps([student.model_dump(mode="json", exclude_none=True)])
    rows = json.dumps({"train": "t/train", "validation": "t/validation"})
    arguments = [str(tmp_path / "cache"), str(tmp_path / "runs"), job, rows]
    projected = int(output_of("-c", PROJECT, *arguments))
    peak_bytes = json.loads(output_of("-m", "tests.student_train.trainer", *arguments).splitlines()[-1])["peak_bytes"]
    assert 1 / 1.3 <= peak_bytes / projected <= 1.3, (peak_bytes, projected)
    assert peak_bytes < 4 * BATCH * LENGTH * IDS  # of float32 logits, beside all else that there is
