"""Many equal small students in one job against as many jobs in turn: real processes, everything counted."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.pairs import NO_CUDA, Figure, Skipped, pairs
from tests.benchmarks.programs import DIGITS, OBJECTIVE, build_cache, cifar, run_s, write_students

RUNS = 2  # of 17 processes each
STUDENTS = 16
CIFAR_ROWS = 4_096
MLP = {"architecture": "mlp", "options": {"hidden": [128]}, "epochs": 40, "batch_size": 64}
CNN = {"architecture": "cnn", "options": {"widths": [16, 32, 64]}, "epochs": 4, "batch_size": 128}

GPU_STUDENTS = 32
GPU_ALONE = 4  # of the jobs in turn, which are alike: their time counts eight times
GPU_ROWS = 20_480
RESNET8 = {"architecture": "resnet", "options": {"depth": 8}, "epochs": 5, "batch_size": 128}


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the time of a fleet over that of its students in turn, for an `mlp` on digits and a `cnn` on CIFAR-10."""
    cases = (("mlp", MLP, DIGITS, 0.7), ("cnn", CNN, cifar(folder, CIFAR_ROWS), 0.9))
    for name, student, dataset, reach in cases:
        values = _ratios(folder / name, dataset, student, STUDENTS, "cpu")
        yield Figure(f"{STUDENTS} students, one job / in turn, {name}", values, reach, "at most")


def measure_gpu(folder: Path) -> Iterator[Figure | Skipped]:
    """Yield the same for ResNet-8 students of CIFAR-10 on one GPU."""
    import torch

    what = f"{GPU_STUDENTS} ResNet-8, one job / in turn, one GPU"
    if not torch.cuda.is_available():
        yield Skipped(what, NO_CUDA)
        return
    values = _ratios(folder / "resnet8", cifar(folder, GPU_ROWS), RESNET8, GPU_STUDENTS, "cuda", alone=GPU_ALONE)
    yield Figure(what, values, 0.15, "at most")


def _ratios(
    folder: Path,
    dataset: dict[str, Any],
    student: dict[str, Any],
    students: int,
    device: str,
    *,
    alone: int | None = None,
) -> list[float]:
    """Return the ratio of each pair, after one job of one student that leaves files and libraries in memory.

    Args:
        folder: of caches, jobs and runs.
        dataset: section of the cache job.
        student: section of the student job.
        students: how many.
        device: of the students.
        alone: how many of the jobs in turn are run, for all of them; None: all.
    """
    folder.mkdir()
    build_cache(folder, dataset)
    rates = itertools.cycle((0.001, 0.002, 0.005, 0.01))
    fleet = [
        {"name": f"s{seed}", **student, "objective": OBJECTIVE, "learning_rate": next(rates), "seed": seed}
        for seed in range(students)
    ]
    together = [write_students(folder / "together.toml", fleet, dataset["name"])]
    in_turn = [write_students(folder / f"alone-{one['name']}.toml", [one], dataset["name"]) for one in fleet[:alone]]
    each_stands_for = students / len(in_turn)
    _train_s(in_turn[:1], device)
    taken = pairs(lambda: _train_s(together, device), lambda: _train_s(in_turn, device), RUNS, warm=False)
    return [one_job_s / (each_stands_for * jobs_s) for one_job_s, jobs_s in taken]


def _train_s(jobs: list[Path], device: str) -> float:
    """Return the seconds that some jobs take one after the other, from the start of each process to its end."""
    for job in jobs:
        shutil.rmtree(job.with_suffix(""), ignore_errors=True)
    return sum(run_s("student", "train", job, "--device", device) for job in jobs)
