"""Measure A against B in turn, A B A B …, so that a machine that slows down slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

RUNS = 5


@dataclass(frozen=True)
class Figure:
    """One line of the table: some measured values, and what is to be reached."""

    HEADER: ClassVar[str] = f"{'what':<44} {'median':>9} {'min':>9} {'max':>9}   reach"

    what: str
    values: list[float]
    reach: float
    side: Literal["at least", "at most"]
    unit: str = ""

    def __str__(self) -> str:
        median = statistics.median(self.values)
        reached = median >= self.reach if self.side == "at least" else median <= self.reach
        low, high = min(self.values), max(self.values)
        numbers = " ".join(f"{value:>9.3f}" for value in (median, low, high))
        return (
            f"{self.what:<44} {numbers}   {self.side} {self.reach:g}{self.unit} {'✓' if reached else '✗ NOT REACHED'}"
        )


@dataclass(frozen=True)
class Skipped:
    """One line of the table: what this machine cannot measure, and why."""

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what:<44} skipped: {self.reason}"


NO_CUDA = "needs a CUDA device"


def pairs(
    a: Callable[[], float], b: Callable[[], float], runs: int = RUNS, *, warm: bool = True
) -> list[tuple[float, float]]:
    """Return (a(), b()) for each run, after one of each that is not counted, unless they are processes of their own."""
    if warm:
        a(), b()
    return [(a(), b()) for _ in range(runs)]


def gpu_s(run: Callable[[], object]) -> float:
    """Return the seconds of a run, until the GPU is done with it."""
    import torch

    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def gpu_bytes(run: Callable[[], object]) -> int:
    """Return by how much a run exceeds, at its peak, what the GPU holds before it."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
