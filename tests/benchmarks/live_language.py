"""A language model distilled from a dense cache, against a loop by hand with transformers whose teacher is live.

What a cache could save at best is the teacher's forward pass: then a step takes what a student's step by hand takes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from tests.benchmarks.pairs import NO_CUDA, Figure, Skipped, gpu_s, pairs

RUNS = 3
LENGTH, IDS = 128, 2_000
TEACHER = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4}
STUDENT = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
LARGE_TEACHER = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16}
LARGE_STUDENT = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8}
RATE = 0.1


def measure(folder: Path) -> Iterator[Figure]:
    """Yield (live / from the cache) over (teacher + student) / student."""
    torch.set_num_threads(1)
    yield _figure(folder, TEACHER, STUDENT, rows=192, batch=16, device="cpu")


def measure_gpu(folder: Path) -> Iterator[Figure | Skipped]:
    """Yield the same on a GPU, of models that fill it."""
    if not torch.cuda.is_available():
        yield Skipped("a chat model: live / from the cache, GPU", NO_CUDA)
        return
    yield _figure(folder, LARGE_TEACHER, LARGE_STUDENT, rows=1024, batch=64, device="cuda")


def _figure(
    folder: Path, teacher_sizes: dict[str, int], student_sizes: dict[str, int], *, rows: int, batch: int, device: str
) -> Figure:
    from tests.language.by_hand import Rows, distil, fresh, stored
    from tests.language.models import config_folder, model_folder
    from tests.teacher_cache.toys import build, write_job

    fields = {"vocab_size": IDS, "max_position_embeddings": LENGTH}
    teacher = stored(model_folder(folder / "teacher", **fields | teacher_sizes)).to(device)
    small = config_folder(folder / "small", **fields | student_sizes)
    ids = np.random.default_rng(0).integers(0, IDS, (rows, LENGTH)).astype(np.uint16)
    np.save(folder / "ids.npy", ids)
    job = write_job(
        folder,
        f'[[dataset]]\nname = "texts"\nkind = "tokens"\npath = "ids.npy"\nvocabulary = {IDS}\nvalidation = 0.05\n',
        '[[teacher]]\nname = "big"\nkind = "transformers"\npath = "teacher"\nbatch_size = 16\n',
    )
    assert build(job, device=device).exit_code == 0
    tokens = torch.from_numpy(ids.astype(np.int64))
    labels = functional.pad(tokens[:, 1:], (0, 1), value=-1)
    batches = [Rows(*each) for each in zip(tokens.to(device).split(batch), labels.to(device).split(batch), strict=True)]

    def of_a_row(once: Callable[[], object]) -> float:
        if device == "cuda":
            return gpu_s(once) / rows
        began = time.perf_counter()
        once()
        return (time.perf_counter() - began) / rows

    def live() -> float:
        student = fresh(small, 0).to(device)
        return of_a_row(lambda: distil(student, teacher, batches, RATE))

    def ideal() -> float:
        with torch.no_grad():
            known = teacher(input_ids=batches[0].ids)
            teacher_s = of_a_row(lambda: [teacher(input_ids=each.ids) for each in batches])
        student = fresh(small, 0).to(device)
        student_s = of_a_row(lambda: distil(student, lambda input_ids: known, batches, RATE))
        return (teacher_s + student_s) / student_s

    taken = pairs(lambda: live() / _cached_s(folder, small, batch, device), ideal, RUNS)
    return Figure(f"a chat model on a {device}: live / from the cache", [a / b for a, b in taken], 0.95, "at least")


def _cached_s(folder: Path, small: Path, batch: int, device: str) -> float:
    """Return the seconds of a row of training from the cache, evaluation apart."""
    from storage.cache import Cache
    from student_train.options.sections import DataOptions, StudentOptions
    from student_train.preparing.request import Request
    from student_train.running.train import train_students

    shutil.rmtree(folder / "runs", ignore_errors=True)
    options: dict[str, Any] = {
        "name": "s",
        "architecture": "transformers",
        "path": str(small),
        "objective": [{"loss": "kd", "teacher": "big"}],
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "learning_rate": RATE,
        "batch_size": batch,
        "epochs": 2,
    }
    request = Request(
        Cache.open(str(folder / "cache")),
        folder / "runs",
        DataOptions(train="texts/train", validation="texts/validation"),
        (StudentOptions.model_validate(options),),
        device,
    )
    (record,) = train_students(request).records
    assert record.rows_per_s is not None
    return 1 / record.rows_per_s
