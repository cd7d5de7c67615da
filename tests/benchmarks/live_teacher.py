"""Training from the cache against the same training with its teacher live, and how near that is to what it could save.

A step with the teacher live is the teacher's forward pass and the student's step; from a cache that cost nothing it
would be the student's step. Both parts are timed by themselves, beside the two trainings of each pair.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from teacher_cache.teachers.loading import load_teacher
from teacher_cache.teachers.model import Teacher
from teacher_cache.teachers.options import TeacherOptions
from tests.benchmarks.by_hand import step_by_hand
from tests.benchmarks.pairs import Figure, pairs
from tests.benchmarks.programs import OBJECTIVE, build_cache, cifar
from tests.benchmarks.teachers import resnet9

RUNS = 3
ROWS = 2_560
EPOCHS = 2
STUDENT: dict[str, Any] = {"architecture": "cnn", "options": {"widths": [16, 32, 64]}, "batch_size": 128}
TEACHER_WIDTH = 13  # of a forward pass, 32 million multiplications an image; the student's has 3.1
BATCHES = 10


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the ratio of the times of training, evaluation apart, over the ideal one."""
    section = {"name": "linear"} | resnet9(folder, TEACHER_WIDTH)  # the objective of all benchmarks asks for this name
    build_cache(folder, cifar(folder, ROWS), section)
    teacher = load_teacher(TeacherOptions.model_validate(section), torch.device("cpu"))

    def once() -> float:
        return _train_s(folder, live=teacher) / _train_s(folder)

    taken = pairs(once, lambda: _ideal(folder, teacher), RUNS)
    yield Figure(
        "live / from the cache, share of the ideal", [found / ideal for found, ideal in taken], 0.95, "at least"
    )


def _ideal(folder: Path, teacher: Teacher) -> float:
    """Return (teacher + student) / student, of the seconds of one batch."""
    from storage.cache import Cache

    dataset = Cache.open(str(folder / "cache")).dataset("cifar")
    shown_B = torch.randint(0, 256, (STUDENT["batch_size"], *dataset.input_shape), dtype=torch.uint8)
    student_s = _each_s(step_by_hand(STUDENT, torch.device("cpu")))
    return (_each_s(lambda: teacher(shown_B, dataset)) + student_s) / student_s


def _each_s(once: Callable[[], object]) -> float:
    once()
    began = time.perf_counter()
    for _ in range(BATCHES):
        once()
    return (time.perf_counter() - began) / BATCHES


def _train_s(folder: Path, *, live: Teacher | None = None) -> float:
    """Return the seconds of all epochs, evaluation apart, with a live teacher or from the cache."""
    from storage.cache import Cache
    from student_train.options.sections import DataOptions, StudentOptions
    from student_train.preparing.request import Request
    from student_train.running.train import train_students
    from tests.live import train_live

    runs = folder / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    options = StudentOptions.model_validate({"name": "s", "objective": OBJECTIVE, "epochs": EPOCHS, **STUDENT})
    data = DataOptions(train="cifar/train", validation="cifar/validation")
    request = Request(Cache.open(str(folder / "cache")), runs, data, (options,), "cpu")
    (record,) = train_live(request, "linear", live) if live else train_students(request).records
    assert record.rows_per_s is not None
    return 1 / record.rows_per_s
