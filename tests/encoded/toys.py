"""Photographs of several sizes, and a teacher that keeps what it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from storage.cache import Cache
from student_train.options.sections import DataOptions, StudentOptions
from student_train.preparing.request import Request
from student_train.running.train import train_students

TEACHER = '''
"""A teacher whose feature `seen` is what it is shown."""

from torch import nn


class Seeing(nn.Module):
    def __init__(self):
        super().__init__()
        self.same = nn.Identity()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.same(x).mean((2, 3)))


def build():
    return Seeing()
'''


def crops(count: int, sides: tuple[int, int], *, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """Return crops of scikit-learn's two photographs by name, (H, W, 3), with sides in a range."""
    draw = np.random.default_rng(seed)
    photographs = load_sample_images().images
    found = []
    for number in range(count):
        name, photograph = ("china", "flower")[number % 2], photographs[number % 2]
        height, width = draw.integers(*sides, 2)
        top, left = (
            draw.integers(0, whole - part) for whole, part in zip(photograph.shape, (height, width), strict=False)
        )
        found.append((name, photograph[top : top + height, left : left + width]))
    return found


def write_photographs(folder: Path, count: int = 24) -> Path:
    """Write crops of several sizes as JPEG, and every fifth as PNG, a folder a class."""
    for number, (name, pixels) in enumerate(crops(count, (40, 90))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{number:03d}.{'png' if number % 5 == 0 else 'jpg'}")
    return folder


def dataset(extra: str = 'inputs = "encoded"', *, size: int = 32, path: str = "photographs") -> str:
    """Return the `[[dataset]]` of a job."""
    head = '[[dataset]]\nname = "photographs"\nkind = "image_folder"\n'
    return f'{head}path = "{path}"\nsize = {size}\nvalidation = 0.25\nrows_per_shard = 10\n{extra}\n'


def seeing(name: str, extra: str = "") -> str:
    """Return a `[[teacher]]` that stores what it is shown as `feature/seen`."""
    files = 'factory = "seeing.py:build"\nweights = "seeing.safetensors"'
    seen = 'features = { seen = { layer = "same", pool = "none", dtype = "fp32" } }'
    return f'[[teacher]]\nname = "{name}"\n{files}\n{seen}\n{extra}\n'


def write_teacher(folder: Path) -> None:
    """Write the files of those teachers."""
    (folder / "seeing.py").write_text(TEACHER)
    draw = torch.Generator().manual_seed(0)
    weights = {"head.weight": torch.randn(2, 3, generator=draw), "head.bias": torch.zeros(2)}
    save_file(weights, folder / "seeing.safetensors")


def train(
    cache: Path,
    runs: Path,
    residency: str,
    teacher: str | None = "large",
    of_student: dict[str, object] | None = None,
    **more: object,
) -> bytes:
    """Return the weights of a small student of the photographs; without a teacher, of labels alone."""
    soft = [] if teacher is None else [{"loss": "kd", "teacher": teacher, "temperature": 2.0}]
    student = {
        "name": "small",
        "architecture": "cnn",
        "options": {"widths": [4, 8]},
        "objective": [{"loss": "labels"}, *soft],
        "epochs": 3,
        "batch_size": 5,
    } | (of_student or {})
    fields = {"train": "photographs/train", "validation": "photographs/validation", "residency": residency}
    rows = DataOptions.model_validate(fields | {"window_shards": 2} | more)
    request = Request(Cache.open(str(cache)), runs, rows, (StudentOptions.model_validate(student),), "cpu")
    for error in train_students(request).errors.values():
        raise error
    return (runs / "small/student.safetensors").read_bytes()
