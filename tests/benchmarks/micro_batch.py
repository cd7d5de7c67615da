"""A step on a batch in eight parts (`micro_batch_size`) against the same step on all of it at once, of a small gpt.

Time is that of the process on one thread. Memory is by how much a process of its own grows in its first step, less the
gradients, which both have.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from student_train.feed.batches import Batch
from student_train.options.sections import StudentOptions
from student_train.stepping.alone import Alone
from student_train.stepping.state import TrainState
from student_train.students import Blueprint
from tests.benchmarks.pairs import NO_CUDA, Figure, Skipped, gpu_bytes, gpu_s, pairs

ROWS, LENGTH, VOCABULARY = 32, 64, 2048
OPTIONS: dict[str, Any] = {"depth": 4, "width": 256}
PARTS = 8
RUNS = 5
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "in parts": {"micro_batch_size": ROWS // PARTS},
    "recomputed": {"recompute": True},
    "in parts, recomputed": {"micro_batch_size": ROWS // PARTS, "recompute": True},
}
# Memory and time. Of four blocks only three are not kept, and losses have memory of their own: deeper ones gain more.
REACH = {"in parts": (0.3, 1.1), "recomputed": (0.9, 1.5), "in parts, recomputed": (0.3, 1.5)}


def measure(folder: Path) -> Iterator[Figure]:
    """Yield memory and time of a step in parts, and of one whose blocks run again, over those of a plain one."""
    torch.set_num_threads(1)
    kept = {way: [_activation_bytes(way) for _ in range(2)] for way in WAYS}
    for way, (memory, seconds) in REACH.items():
        what = f"B/{PARTS} at a time" if way == "in parts" else way
        ratios = [one / other for one, other in zip(kept[way], kept["whole"], strict=True)]
        yield Figure(f"activations: {what} / one batch", ratios, memory, "at most")
        one, other, batch = _student(way), _student("whole"), _batch()
        taken = pairs(lambda: _step_s(one, batch), lambda: _step_s(other, batch), RUNS)  # noqa: B023 - used here
        yield Figure(f"time of a step: {what} / one batch", [a / b for a, b in taken], seconds, "at most")


def measure_gpu(_: Path) -> Iterator[Figure | Skipped]:
    """Yield the same on a GPU, of a gpt of 12 × 768 whose parts still fill it."""
    if not torch.cuda.is_available():
        yield Skipped(f"activations: B/{PARTS} at a time / one batch, GPU", NO_CUDA)
        return
    batch = _batch(rows=64, length=1024, device="cuda")

    def gradients_apart(way: str) -> tuple[int, float]:
        student = _student(way, options={"depth": 12, "width": 768, "heads": 12}, rows=64, length=1024, device="cuda")
        gradients = sum(parameter.nbytes for parameter in student.states[0].trained)
        peak = gpu_bytes(lambda: student.step([batch], [1e-4], 0, measure_shares=False)) - gradients
        seconds = [gpu_s(lambda: student.step([batch], [1e-4], 0, measure_shares=False)) for _ in range(RUNS)]
        return peak, min(seconds)

    whole_bytes, whole_s = gradients_apart("whole")
    for way, (memory, seconds) in REACH.items():
        bytes_, taken_s = gradients_apart(way)
        yield Figure(f"activations, GPU: {way} / one batch", [bytes_ / whole_bytes], memory, "at most")
        yield Figure(f"time of a step, GPU: {way} / one batch", [taken_s / whole_s], seconds, "at most")


def _student(
    way: str, *, options: dict[str, Any] = OPTIONS, rows: int = ROWS, length: int = LENGTH, device: str = "cpu"
) -> Alone:
    spec = Blueprint(
        architecture="gpt", options=options, num_classes=VOCABULARY, input_shape=(length,), mean=None, std=None
    )
    section = {"name": "s", "architecture": "gpt", "options": options, "objective": [{"loss": "labels"}]}
    # no optimiser's state: what a step leaves behind are gradients alone
    how = {"optimizer": "sgd", "momentum": 0.0, "batch_size": rows}
    chosen = {"micro_batch_size": rows // PARTS} if "micro_batch_size" in WAYS[way] else {}
    told = StudentOptions.model_validate(section | how | WAYS[way] | chosen)
    return Alone(TrainState.fresh(told, spec, {}, torch.device(device)))


def _batch(rows: int = ROWS, length: int = LENGTH, device: str = "cpu") -> Batch:
    generator = torch.Generator().manual_seed(0)
    tokens_BL, labels_BL = torch.randint(VOCABULARY, (2, rows, length), generator=generator).to(device)
    return Batch(tokens_BL, labels_BL)


def _step_s(student: Alone, batch: Batch) -> float:
    began = time.process_time()
    student.step([batch], [1e-4], 0, measure_shares=False)
    return time.process_time() - began


def _activation_bytes(way: str) -> int:
    command = [sys.executable, "-m", "tests.benchmarks.micro_batch", way]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _print_growth(way: str) -> None:
    torch.set_num_threads(1)
    student, batch = _student(way), _batch()
    small = torch.nn.Linear(8, 8)
    small(torch.ones(2, 8)).sum().backward()  # what the first backward pass of a process makes
    gradients = sum(parameter.nbytes for parameter in student.states[0].trained)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = _status_bytes("VmRSS")
    student.step([batch], [1e-4], 0, measure_shares=False)
    print(json.dumps(_status_bytes("VmHWM") - before - gradients))


if __name__ == "__main__":
    _print_growth(sys.argv[1])
