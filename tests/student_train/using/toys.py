"""A student of pictures in folders, trained once for all tests of this folder, and folders that it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from student_train.options.sections import DataOptions, StudentOptions
from student_train.preparing.request import Request
from student_train.running.train import train_students
from tests.teacher_cache.toys import build, write_job

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
DATASET = '[[dataset]]\nname = "pictures"\nkind = "image_folder"\npath = "pictures"\nsize = 8\nvalidation = 0.4\n'


def write_pictures(folder: Path, classes: Sequence[str], each: int, *, seed: int = 0, side: int = 12) -> Path:
    """Write noisy pictures of colours, a folder a class, in another size than the student's."""
    random = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            pixels = np.array(COLOURS[name]) + random.normal(0, 40, (side, side + 2, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:03d}.png")
    return folder


def train_pictures(folder: Path) -> Path:
    """Return the run of a small network on pictures of three colours."""
    write_pictures(folder / "pictures", tuple(COLOURS), 20)
    assert build(write_job(folder, DATASET)).exit_code == 0
    return train_small(folder)


def train_small(folder: Path) -> Path:
    """Return the run of a small network on the dataset `pictures` of the cache in a folder."""
    from storage.cache import Cache

    student = StudentOptions.model_validate(
        {
            "name": "small",
            "architecture": "cnn",
            "options": {"widths": [4, 8]},
            "objective": [{"loss": "labels"}],
            "epochs": 15,
            "batch_size": 8,
            "learning_rate": 0.02,
        }
    )
    rows = DataOptions(train="pictures/train", validation="pictures/validation")
    request = Request(Cache.open(str(folder / "cache")), folder / "runs", rows, (student,), "cpu")
    assert not train_students(request).errors
    return folder / "runs/small"
