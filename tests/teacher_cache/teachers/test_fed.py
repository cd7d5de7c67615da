"""What a teacher is shown: the student's picture, at its own size, in its own range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from storage.cache import Cache
from storage.errors import BadTeacher, StaleCache
from storage.format.specs import DatasetSpec
from teacher_cache.teachers.fed import fed
from teacher_cache.teachers.options import TeacherOptions
from tests.teacher_cache.toys import build, digits, teacher_section, write_job, write_teacher

PICTURES = DatasetSpec(name="d", source={}, classes=["a", "b"], input_shape=(3, 12, 9), input_dtype="uint8")


def shown(images: torch.Tensor, **fields: Any) -> torch.Tensor:
    options = TeacherOptions(name="t", factory="net.py:build", **fields)
    return fed(images, torch.nn.Identity(), options, PICTURES, lambda _name, values: torch.tensor(values))


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [[24, 20], [6, 4]], ids=["larger", "smaller"])
def test_a_picture_is_resized_as_pillow_does(filter_: str, size: list[int]) -> None:
    pixels = np.random.default_rng(0).integers(64, 192, (12, 9, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling[filter_.upper()]), float) / 255
    found = shown(torch.tensor(pixels).permute(2, 0, 1)[None] / 255, size=size, filter=filter_)[0].permute(1, 2, 0)
    assert np.abs(found.numpy() - expected).max() < 1.6 / 255  # Pillow rounds to bytes, between its two passes too


def test_what_is_resized_is_then_normalised() -> None:
    images = torch.rand(2, 3, 12, 9)
    found = shown(images, size=24, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    resized = interpolate(images, (24, 24), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    assert torch.equal(found, (resized - mean) / std)


def test_normalising_takes_one_new_array_and_leaves_what_was_given() -> None:
    """Of a batch of photographs new memory takes as long as what is computed there."""
    images, taken = torch.rand(2, 3, 12, 9), []

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if result.shape == images.shape:
                taken.append(result.untyped_storage().data_ptr())
            return result

    before = images.clone()
    with Noted():
        shown(images, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    assert (len(taken), len(set(taken))) == (2, 1)
    assert torch.equal(images, before)


def test_a_teacher_of_another_size_is_shown_the_students_picture_resized(tmp_path: Path) -> None:
    model = write_teacher(tmp_path)
    images, labels = digits(16)
    smaller = interpolate(torch.from_numpy(images).float(), 4).byte()  # a dataset of another size than the teacher's
    np.savez(tmp_path / "digits.npz", inputs=smaller.numpy(), labels=labels)
    classes = [str(number) for number in range(10)]
    dataset = f'[[dataset]]\nname = "digits"\nkind = "arrays"\npath = "digits.npz"\nclasses = {classes}\n'
    build(write_job(tmp_path, dataset, teacher_section(extra='size = 8\nfilter = "bicubic"')))
    stored = Cache.open(str(tmp_path / "cache")).read_targets("digits", "toy", 0)["logits"]
    larger = interpolate(smaller.float() / 255, (8, 8), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.inference_mode():
        assert np.allclose(stored, model(larger), atol=1e-5)
    with pytest.raises(StaleCache, match="size"):  # it is promised
        build(write_job(tmp_path, dataset, teacher_section(extra="size = 8")))


def test_a_size_for_what_is_no_picture_is_refused() -> None:
    values = PICTURES.model_copy(update={"input_shape": (5,), "input_dtype": "float32"})
    options = TeacherOptions(name="t", factory="net.py:build", size=8)
    with pytest.raises(BadTeacher, match="has no pictures"):
        fed(torch.rand(2, 5), torch.nn.Identity(), options, values, lambda _name, values: torch.tensor(values))


def test_a_filter_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is resized"):
        TeacherOptions(name="t", factory="net.py:build", filter="bicubic")
