"""How fast a trained student answers, where it was trained: one row, and rows in batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from student_train.students import Student
from student_train.tasks import task_of

BUDGET_S = 0.15  # of each of the two figures; a slower student is asked twice
MOST_REPEATS = 100
LARGEST_BATCH = 128


class Latency(NamedTuple):
    """Medians of repeated forward passes: milliseconds for one row, and rows a second in batches."""

    latency_ms: float
    inference_rows_per_s: float


def measure_latency(student: Student, input_shape: tuple[int, ...], *, batch_size: int = LARGEST_BATCH) -> Latency:
    """Return how fast a student answers on its device, in float32; it takes less than half a second for small ones.

    Of tokens a row is a whole context, of which the next token's scores are asked for.

    Args:
        student: in any mode, which it keeps.
        input_shape: of one row.
        batch_size: rows that its device holds at a time; batches are the largest power of two within it and within
            LARGEST_BATCH, and smaller where one pass would take too long.
    """
    training = student.training
    student.eval()
    try:
        with torch.inference_mode():
            row_s = _median_s(_pass(student, input_shape, 1))
            rows, seconds = 1, row_s
            # of twice as many some passes still fit into the budget
            while 2 * rows <= min(batch_size, LARGEST_BATCH) and seconds < BUDGET_S / 8:
                rows *= 2
                seconds = _timed(_pass(student, input_shape, rows))
            batch_s = row_s if rows == 1 else _median_s(_pass(student, input_shape, rows))
    finally:
        student.train(training)
    return Latency(1000 * row_s, rows / batch_s)


def _pass(student: Student, input_shape: tuple[int, ...], rows: int) -> Callable[[], object]:
    """Return a forward pass that has ended when it returns."""
    inputs, task = student.blank(rows, input_shape), task_of(student.blueprint)

    def forward() -> Tensor:
        return task.answer(student, inputs)

    def ended() -> None:
        forward()
        if inputs.device.type == "cuda":
            torch.cuda.synchronize(inputs.device)

    return ended


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _median_s(run: Callable[[], object]) -> float:
    """Return the median time of a pass, after one that is not counted."""
    run()
    times = [_timed(run)]
    while sum(times) < BUDGET_S and len(times) < MOST_REPEATS:
        times.append(_timed(run))
    return median(times)
