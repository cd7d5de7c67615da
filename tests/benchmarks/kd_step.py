"""A step that learns from sparse soft targets against one that learns from labels, of the same student of tokens.

On a CPU on one thread and by the clock of the process, whatever else runs on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from storage.encodings import Encoded, SparseEncoding
from student_train.feed.batches import Batch
from student_train.options.sections import StudentOptions
from student_train.stepping.alone import Alone
from student_train.stepping.state import TrainState
from student_train.students import Blueprint
from tests.benchmarks.pairs import Figure, pairs

VOCABULARY = 32_768
PEAK = 4.0  # deviation of the logits: the largest 64 classes of 32,768 have about 0.8 of the mass
STEPS = 1
RUNS = 25

# By device: rows and positions of a batch, and a student that keeps it busy.
SIZES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "cpu": (4, 128, {"depth": 4, "width": 256}),
    "cuda": (16, 1024, {"depth": 8, "width": 768, "heads": 12}),
}
LABELS = {"loss": "labels"}
KD = {"loss": "kd", "teacher": "t", "temperature": 1.0}
DRAWN = {"loss": "random_sampling", "teacher": "t"}
CASES: dict[str, tuple[SparseEncoding, list[dict[str, Any]]]] = {
    "k = 64, 8-bit": (SparseEncoding(k=64, values="8bit"), [KD]),
    "k = 64, and labels": (SparseEncoding(k=64, values="8bit"), [LABELS, KD]),
    "50 draws": (SparseEncoding(n=50), [DRAWN]),
}


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the time of a step of distillation over that of a step on labels alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    for name, (encoding, objective) in CASES.items():
        batch = _batch(encoding, device)
        distilled, labelled = (_student(each, device) for each in (objective, [LABELS]))
        taken = pairs(lambda: _steps_s(distilled, batch), lambda: _steps_s(labelled, batch), RUNS)  # noqa: B023 - used here
        yield Figure(f"KD step / step on labels, {name}", [kd / labels for kd, labels in taken], 1.05, "at most")


def _student(objective: list[dict[str, Any]], device: torch.device) -> Alone:
    _, length, options = SIZES[device.type]
    spec = Blueprint(
        architecture="gpt", options=options, num_classes=VOCABULARY, input_shape=(length,), mean=None, std=None
    )
    section = {"name": "s", "architecture": "gpt", "options": options, "objective": objective}
    return Alone(TrainState.fresh(StudentOptions.model_validate(section), spec, {}, device))


def _batch(encoding: SparseEncoding, device: torch.device) -> Batch:
    """Return random tokens, and what a teacher of random peaked logits would have stored of each."""
    rows, length, _ = SIZES[device.type]
    shape, count = (rows, length), rows * length
    generator = torch.Generator(device).manual_seed(0)
    tokens_BL, labels_BL = torch.randint(VOCABULARY, (2, *shape), device=device, generator=generator)
    logits_NC = PEAK * torch.randn(count, VOCABULARY, device=device, generator=generator)
    keys_N = torch.arange(count, device=device)
    arrays = encoding.encode(logits_NC, num_classes=VOCABULARY, labels_B=labels_BL.flatten(), keys_B=keys_N)
    stored = {name: values[labels_BL.flatten() >= 0] for name, values in arrays.items()}
    return Batch(tokens_BL, labels_BL, {"t": Encoded(encoding, VOCABULARY, stored)})


def _steps_s(student: Alone, batch: Batch) -> float:
    on_gpu = batch.inputs.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    began = clock()
    for number in range(STEPS):
        student.step([batch], [1e-4], number, measure_shares=False)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - began
