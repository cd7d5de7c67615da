"""A student from a dense fp32 cache, and the same student with its teacher live: the same weights on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from student_train.options.sections import DataOptions, StudentOptions
from student_train.preparing.request import Request
from student_train.running.train import train_students
from student_train.students import load_student
from teacher_cache.teachers.loading import load_teacher
from tests.live import train_live
from tests.teacher_cache.toys import DIGITS, build, teacher_section, write_job, write_teacher


def largest_difference(folder: Path, encoding: str) -> float:
    """Return the largest difference of any weight, after three epochs on the digits, from the cache and live."""
    write_teacher(folder)
    job = write_job(folder, DIGITS, teacher_section(extra=f"encoding = {encoding}"))
    assert build(job).exit_code == 0
    objective = [{"loss": "labels", "weight": 0.1}, {"loss": "kd", "teacher": "toy", "temperature": 3.0, "weight": 0.9}]
    options: dict[str, Any] = {
        "name": "s",
        "architecture": "cnn",
        "options": {"widths": [4, 8]},
        "objective": objective,
        "epochs": 3,
        "batch_size": 64,
        "learning_rate": 0.01,
    }
    data = DataOptions(train="digits/train", validation="digits/validation")
    cache, students = Cache.open(str(folder / "cache")), (StudentOptions.model_validate(options),)
    train_students(Request(cache, folder / "cached", data, students, "cpu"))
    teacher = load_teacher(read_job(job, CacheJob).teacher[0], torch.device("cpu"))
    train_live(Request(cache, folder / "live", data, students, "cpu"), "toy", teacher)
    one, other = (load_student(folder / runs / "s").state_dict() for runs in ("cached", "live"))
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_from_a_dense_fp32_cache_a_student_ends_at_the_weights_of_a_live_teacher(tmp_path: Path) -> None:
    assert largest_difference(tmp_path, '{ kind = "dense", dtype = "fp32" }') < 1e-5


@pytest.mark.parametrize("dtype", ["bf16"])
def test_a_rounded_cache_ends_elsewhere(tmp_path: Path, dtype: str) -> None:
    assert largest_difference(tmp_path, f'{{ kind = "dense", dtype = "{dtype}" }}') > 1e-4
