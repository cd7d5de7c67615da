"""`student predict` on a folder of images, against a bare loop of decoding and forward on the same two cores."""

from __future__ import annotations

import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from tests.benchmarks.data import cifar_slice
from tests.benchmarks.pairs import Figure, pairs

ROWS = 2_000
SIDE = 32
BATCH = 256
CORES = 2


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the ratio of rates, images a second, of a small network and of a larger one."""
    import torch

    torch.set_num_threads(CORES)
    photos = _photos(folder)
    for name, options in (
        ("cnn of 16-32-64", {"widths": [16, 32, 64]}),
        ("cnn of 64-128-256", {"widths": [64, 128, 256]}),
    ):
        run = _student(folder / name.replace(" ", "-"), options)
        values = [b / a for a, b in pairs(lambda r=run: _ours(r, photos, folder), lambda r=run: _bare(r, photos))]
        yield Figure(f"predict / decoding and forward, {name}", values, 0.8, "at least")


def _photos(folder: Path) -> Path:
    """Write images of CIFAR-10 as JPEG files, at twice their size, as photographs are larger than a student's input."""
    import pyarrow.parquet as pq
    from PIL import Image

    place = folder / "photos"
    place.mkdir()
    for number, row in enumerate(pq.read_table(cifar_slice(folder, ROWS))["image"].to_pylist()):
        small = Image.open(BytesIO(row["bytes"] if isinstance(row, dict) else row)).convert("RGB")
        image = small.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
        image.save(place / f"{number:05d}.jpg", quality=90)
    return place


def _student(folder: Path, options: dict[str, object]) -> Path:
    """Write a student, as drawn: how well it answers is of no matter here."""
    from student_train.students import Blueprint, build_student, save_student

    blueprint = Blueprint(
        architecture="cnn",
        options=options,
        num_classes=10,
        input_shape=(3, SIDE, SIDE),
        mean=(0.5,),
        std=(0.25,),
        classes=tuple(map(str, range(10))),
        source={"kind": "image_folder", "channels": 3, "size": SIDE, "orientation": "exif", "background": [255] * 3},
    )
    folder.mkdir()
    save_student(folder, blueprint, build_student(blueprint).state_dict())
    return folder


def _ours(run: Path, photos: Path, folder: Path) -> float:
    """Return seconds of all that the command does once its modules are imported."""
    from student_train.using.answering import load_answerer
    from student_train.using.predicting.predict import predict_samples
    from student_train.using.predicting.samples import find_samples
    from student_train.using.predicting.writing import writing

    out = folder / "out.parquet"
    out.unlink(missing_ok=True)
    began = time.perf_counter()
    answerer = load_answerer(run, device="cpu")
    with writing(out) as write:
        found = predict_samples(answerer, find_samples(str(photos), answerer.blueprint, ()), write)
    assert found.rows == ROWS
    assert not found.unreadable
    return time.perf_counter() - began


def _bare(run: Path, photos: Path) -> float:
    """Return seconds of a loop as one writes it: decode a batch, ask the model, on all cores."""
    import numpy as np
    import torch
    from PIL import Image

    from student_train.students import load_student

    began = time.perf_counter()
    student = load_student(run)
    paths = sorted(photos.iterdir())
    tops = []
    with torch.inference_mode():
        for start in range(0, len(paths), BATCH):
            images = [
                Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                for path in paths[start : start + BATCH]
            ]
            pixels = torch.from_numpy(np.stack([np.asarray(image).transpose(2, 0, 1) for image in images]))
            tops.append(student(pixels.float() / 255).softmax(dim=1).max(dim=1))
    assert sum(len(top.indices) for top in tops) == ROWS
    return time.perf_counter() - began
