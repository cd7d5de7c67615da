"""What views cost: each transform by itself, and a student's step that shows a view against one that does not."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from jobs.cluster.builds import open_runner
from jobs.files.cluster_options import BuildClusterOptions
from storage.views.options import (
    ColorJitter,
    Cutmix,
    Cutout,
    Flip,
    Mixup,
    PadCrop,
    RandomResizedCrop,
    Transform,
    ViewOptions,
)
from tests.benchmarks.building import StageClock, source
from tests.benchmarks.data import cifar_slice
from tests.benchmarks.pairs import RUNS, Figure, pairs

ROWS = 5_120
BATCH = 128
SHIFTED: tuple[Transform, ...] = (PadCrop(padding=4), Flip())
EACH: dict[str, tuple[Transform, ...]] = {
    "pad_crop": (PadCrop(padding=4),),
    "flip": (Flip(),),
    "random_resized_crop": (RandomResizedCrop(scale=(0.5, 1.0)),),
    "color_jitter": (ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),),
    "cutout": (Cutout(size=8),),
    "mixup": (Mixup(),),
    "cutmix": (Cutmix(),),
}
STEPS: dict[str, tuple[Transform, ...]] = {
    "pad_crop, flip": SHIFTED,
    "pad_crop, flip, mixup or cutmix": (*SHIFTED, Mixup(probability=0.5), Cutmix(probability=0.5)),
}
REACH_MS = {"random_resized_crop": 70.0, "color_jitter": 60.0}  # of a thousand images; the others less


def measure(folder: Path) -> Iterator[Figure]:
    """Yield milliseconds of one core per 1,000 images of 3×32×32, then ratios of a small `cnn`'s training rates."""
    for name, transforms in EACH.items():
        yield Figure(f"{name}, 1,000 images", _milliseconds(transforms), REACH_MS.get(name, 25.0), "at most", " ms")
    path = cifar_slice(folder, ROWS)
    for number, (name, transforms) in enumerate(STEPS.items()):
        cache = folder / f"cache{number}"
        _build(cache, path, transforms)
        values = [plain / shown for shown, plain in pairs(lambda c=cache: _epoch(c, 1), lambda c=cache: _epoch(c, 0))]
        yield Figure(f"step, {name} / plain", values, 0.8 if number else 0.9, "at least")


def _milliseconds(transforms: tuple[Transform, ...]) -> list[float]:
    from storage.views.shown import View

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1024, 3, 32, 32), dtype=torch.uint8, generator=generator)
    keys = torch.randint(-(2**63), 2**63 - 1, (1024,), generator=generator)
    view, batches = View(transforms, seed=0, number=0), range(0, 1024, BATCH)

    def once() -> float:
        began = time.process_time()  # of this process, whatever else runs on the machine
        for start in batches:
            rows = slice(start, start + BATCH)
            others = slice(1024 - start - BATCH, 1024 - start)
            view.show(images[rows], keys[rows], images[others], keys[others])
        return (time.process_time() - began) * 1000 / 1.024

    once()
    return [statistics.median(once() for _ in range(5)) for _ in range(RUNS)]


def _build(cache: Path, path: Path, transforms: tuple[Transform, ...]) -> None:
    from teacher_cache.building.build import run_build
    from teacher_cache.building.prepared import BuildRequest
    from teacher_cache.building.survey import prepare_build

    options = ViewOptions(count=1, transforms=list(transforms))  # type: ignore[arg-type]
    request = BuildRequest(str(cache), "benchmark", (source(path),), (), views=options)
    with open_runner(BuildClusterOptions(kind="inline")) as runner:
        assert run_build(prepare_build(request), runner, StageClock()).exit_code == 0


def _epoch(cache: Path, views: int) -> float:
    """Return seconds of an epoch as `student train` runs it, evaluation apart."""
    from storage.cache import Cache
    from student_train.options.sections import DataOptions, StudentOptions
    from student_train.preparing.request import Request
    from student_train.running.train import train_students

    runs = cache.with_name("runs")
    shutil.rmtree(runs, ignore_errors=True)
    options = {
        "name": "s",
        "architecture": "cnn",
        "options": {"widths": [16, 32, 64]},
        "objective": [{"loss": "labels"}],
        "epochs": 1,
        "batch_size": BATCH,
    }
    data = DataOptions(train="cifar", validation="cifar", residency="device", views=views)
    request = Request(Cache.open(str(cache)), runs, data, (StudentOptions.model_validate(options),), "cpu")
    (record,) = train_students(request).records
    assert record.rows_per_s is not None
    return ROWS / record.rows_per_s
