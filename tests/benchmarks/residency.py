"""What it costs to bring rows to a student: from disk against resident, and resident against no rows at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tests.benchmarks.pairs import NO_CUDA, Figure, Skipped, pairs
from tests.benchmarks.programs import OBJECTIVE, build_cache, cifar

RUNS = 5
GPU_RUNS = 3
STREAMED_ROWS = 4_096
STREAMED: dict[str, Any] = {"architecture": "resnet", "options": {"depth": 14}, "batch_size": 128}  # 53 MFLOP an image
SHARDS = {"rows_per_shard": 256, "window_shards": 4}  # so small that a window, and what is read behind it, is few rows

RESIDENT_ROWS = 50_000
RESIDENT: dict[str, Any] = {"architecture": "resnet", "options": {"depth": 20}, "batch_size": 128}
RESIDENT_EPOCHS = 2  # the last is timed: the first compiles kernels, and records


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the rate from a stream over that of resident rows."""
    streamed = folder / "streamed"
    streamed.mkdir()
    build_cache(streamed, cifar(folder, STREAMED_ROWS, rows_per_shard=SHARDS["rows_per_shard"]))
    taken = pairs(lambda: _epoch_s(streamed, STREAMED, residency="stream"), lambda: _epoch_s(streamed, STREAMED), RUNS)
    yield Figure("streamed / resident, student of 53 MFLOP", [b / a for a, b in taken], 0.97, "at least")


def measure_gpu(folder: Path) -> Iterator[Figure | Skipped]:
    """Yield the rate of a resident student on a GPU over that of the same step by hand on random tensors there."""
    import torch

    what = "resident / random tensors, GPU"
    if not torch.cuda.is_available():
        yield Skipped(what, NO_CUDA)
        return
    from tests.benchmarks.by_hand import recorded_by_hand, step_by_hand

    build_cache(folder, cifar(folder, RESIDENT_ROWS))
    steps = -(-_trained_rows(folder) // RESIDENT["batch_size"])
    for how, by_hand in ((", by hand a graph", recorded_by_hand), ("", step_by_hand)):
        step = by_hand(RESIDENT, torch.device("cuda"))
        taken = pairs(
            lambda: _epoch_s(folder, RESIDENT, epochs=RESIDENT_EPOCHS, device="cuda"),
            lambda step=step: _steps_s(step, steps),  # type: ignore[misc]
            GPU_RUNS,
        )
        yield Figure(f"{what}{how}", [b / a for a, b in taken], 0.98, "at least")


def _epoch_s(
    folder: Path, student: dict[str, Any], *, residency: str = "auto", epochs: int = 1, device: str = "cpu"
) -> float:
    """Return seconds of the last epoch as `student train` runs it, evaluation apart."""
    from storage.cache import Cache
    from student_train.options.sections import DataOptions, StudentOptions
    from student_train.preparing.request import Request
    from student_train.running.train import train_students

    runs = folder / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    options = StudentOptions.model_validate({"name": "s", "objective": OBJECTIVE, "epochs": epochs, **student})
    data = DataOptions.model_validate(
        {
            "train": "cifar/train",
            "validation": "cifar/validation",
            "residency": residency,
            "window_shards": SHARDS["window_shards"],
        }
    )
    request = Request(Cache.open(str(folder / "cache")), runs, data, (options,), device)  # type: ignore[arg-type]
    assert train_students(request).exit_code == 0
    seconds: float = pl.read_parquet(runs / "s/metrics.parquet")["seconds"][-1]
    return seconds


def _trained_rows(folder: Path) -> int:
    from storage.cache import Cache

    return int((Cache.open(str(folder / "cache")).samples().of("cifar")["split"] == "train").sum())


def _steps_s(step: Callable[[], None], steps: int) -> float:
    """Return seconds of so many steps on the GPU."""
    import torch

    for _ in range(10):  # compiles kernels
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return time.perf_counter() - began
