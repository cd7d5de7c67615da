"""Tiny real teachers, real digits, and builds of both in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.format.shards import read_commits, stage_folder
from storage.views import PLAIN
from teacher_cache.building.build import run_build
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.building.runners import Runner, run_inline
from teacher_cache.building.stages import BuildReport
from teacher_cache.building.survey import prepare_build

TEACHER = '''
"""A tiny convolutional teacher of 8 by 8 inputs; `fault` is what it does wrong to rows whose first pixel is white.

Of the fault "memory", more rows at a time than `limit` do not fit. A batch takes it `seconds`, so that tests can
disturb it; where the environment has HURRY, none.
"""

import os
import time

import torch
from torch import nn


class Toy(nn.Module):
    def __init__(self, classes, channels, fault, seconds, limit):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Linear(2, 2)
        self.halves = Halves()
        self.head = nn.Linear(256, classes)
        self.limit = limit
        self.fault, self.seconds = fault, 0 if "HURRY" in os.environ else seconds

    def forward(self, x):
        time.sleep(self.seconds)
        if self.fault == "memory" and len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        marked = x[:, 0, 0, 0] == 1
        if marked.any():
            if self.fault == "crash":
                os._exit(7)
            if self.fault == "sleep":
                time.sleep(3600)
            if self.fault == "raise":
                raise RuntimeError("a fault in the teacher's own code")
        y = self.act(self.norm(self.conv(x))).flatten(1)
        self.halves(y)
        logits = self.head(self.drop(y))
        bad = {"nan": float("nan"), "inf": float("inf"), "large": 1e6}.get(self.fault)
        if bad is not None:
            logits = torch.where(marked[:, None], bad, logits)
        if self.fault == "probabilities":
            return logits.softmax(1)
        if self.fault == "tuple":
            return logits, y
        if self.fault == "flat":
            return logits.flatten()
        if self.fault == "one number":
            return logits.sum()
        return logits


class Halves(nn.Module):
    def forward(self, x):
        return x.chunk(2)


def build(classes=10, channels=1, fault="", seconds=0.0, limit=8):
    return Toy(classes, channels, fault, seconds, limit)


def broken():
    raise ValueError("no such checkpoint")


def nothing():
    return None
'''

DIGITS = '[[dataset]]\nname = "digits"\nkind = "digits"\nvalidation = 0.2\nrows_per_shard = 256\n'


class Silent:
    """Watches, and keeps what it is told for tests to look at."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.counts: dict[str, list[int]] = {}

    def begin(self, name: str, total: int | None, done: int = 0, unit: str | None = None) -> None:
        self.counts[name] = [done, total]

    def advance(self, count: int, detail: str = "") -> None:
        self.counts[next(reversed(self.counts))][0] += count

    def detail(self, text: str) -> None:
        self.advance(0, text)

    def complete(self) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def write_teacher(folder: Path, *, name: str = "toy", seed: int = 0, **arguments: Any) -> nn.Module:
    """Write `<name>.py` and `<name>.safetensors`; return the model in evaluation mode, for forwards by hand."""
    (folder / f"{name}.py").write_text(TEACHER)
    namespace: dict[str, Any] = {}
    exec(TEACHER, namespace)
    torch.manual_seed(seed)
    model: nn.Module = namespace["build"](**arguments)
    nn.init.normal_(model.norm.running_mean)  # so that evaluation mode makes a difference
    nn.init.uniform_(model.norm.running_var, 0.5, 2.0)
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    return model.eval()


def teacher_section(name: str = "toy", *, extra: str = "", **arguments: Any) -> str:
    """Return a `[[teacher]]` of a job, whose files `write_teacher` writes."""
    lines = [
        "[[teacher]]",
        f'name = "{name}"',
        'factory = "toy.py:build"',
        'weights = "toy.safetensors"',
        f"arguments = {{ {', '.join(f'{key} = {json.dumps(value)}' for key, value in arguments.items())} }}",
    ]
    return "\n".join([*lines, extra]) + "\n"


def digits(rows: int, marked: Iterable[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Return the first real digits, (N, 1, 8, 8) uint8 and labels; the first pixel of marked rows is white."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inputs = np.round(bunch.images[:rows, None] * (255 / 16)).astype(np.uint8)
    inputs[list(marked), 0, 0, 0] = 255
    return inputs, bunch.target[:rows]


def write_digits(folder: Path, rows: int, marked: Iterable[int] = (), *, rows_per_shard: int = 16) -> str:
    """Write real digits as `digits.npz`; return the `[[dataset]]` of a job."""
    inputs, labels = digits(rows, marked)
    np.savez(folder / "digits.npz", inputs=inputs, labels=labels)
    return (
        '[[dataset]]\nname = "digits"\nkind = "arrays"\npath = "digits.npz"\n'
        f"classes = {json.dumps([str(i) for i in range(10)])}\nrows_per_shard = {rows_per_shard}\n"
    )


def write_job(folder: Path, *sections: str, cache: str = "cache", cluster: str = 'kind = "inline"') -> Path:
    """Write a cache job and return its path."""
    path = folder / "job.toml"
    path.write_text("\n".join([f'cache = "{cache}"', *sections, f"[cluster]\n{cluster}\nthreads = 1\n"]))
    return path


def build(job: Path, *, runner: Runner = run_inline, watcher: Silent | None = None, **request: Any) -> BuildReport:
    """Build a job in this process, as the command does."""
    read = read_job(job, CacheJob)
    fields = {"cache": read.cache, "sources": read.sources, "teachers": tuple(read.teacher), "views": read.views}
    return run_build(prepare_build(BuildRequest(**(fields | {"job": str(job)} | request))), runner, watcher or Silent())


def contents(cache: Path) -> dict[str, dict[str, str]]:
    """Return what a cache holds: shard → object → digest, and the rows of every commit's table."""
    opened = Cache.open(str(cache))
    found: dict[str, dict[str, str]] = {}
    catalogue = opened.catalogue()
    for dataset in catalogue.datasets:
        for teacher in [None, *catalogue.teacher_names(dataset)]:
            for view in [PLAIN] if teacher is None else catalogue.view_names(dataset, teacher):
                folder = stage_folder(dataset, teacher, view)
                paths = [f"{folder}/{shard:05d}.parquet" for shard in sorted(opened.committed(dataset, teacher, view))]
                for commit in read_commits(opened.objects, paths):
                    table = json.dumps(commit.table.to_pydict(), default=str)
                    found[str(commit.key)] = {o.path: o.digest for o in commit.members} | {"table": table}
    return found


def run_program(*arguments: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `cache` (or `student`) as a user would: `run_program("cache", "build", job)`."""
    program = Path(sys.executable).with_name(str(arguments[0]))
    command = [str(program), *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
