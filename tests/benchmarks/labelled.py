"""Chats padded to one length, asked and stored where a label is, against the same with a label at every position."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from storage.cache import Cache
from storage.datasets import AnySource
from teacher_cache.building.build import run_build
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.building.runners import run_inline
from teacher_cache.building.survey import prepare_build
from teacher_cache.teachers.options import TeacherOptions
from tests.benchmarks.building import StageClock
from tests.benchmarks.pairs import Figure, pairs

ROWS, LENGTH, IDS = 32, 224, 32_000
LABELLED = 0.115  # of the positions: answers, of prompts, answers and padding
BATCH, RUNS = 8, 3

TEACHER = """
import torch

from student_train.students.gpt import gpt


def build():
    torch.manual_seed(0)
    return gpt(32_000, (224,), depth=4, width=128, heads=4, tied=False)
"""


class Told(StageClock):
    """What a build of a teacher that was not trained has to say, nobody reads."""

    def note(self, text: str) -> None:
        pass


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the ratio of bytes and that of seconds."""
    (folder / "toy.py").write_text(TEACHER)
    rng = np.random.default_rng(0)
    np.save(folder / "tokens.npy", rng.integers(0, IDS, (ROWS, LENGTH)).astype(np.uint16))
    answer = round(LABELLED * LENGTH)
    starts_R = rng.integers(1, LENGTH - answer, (ROWS, 1))
    places_L = np.arange(LENGTH)
    # a token that counts is predicted by the one before it, so that of all tokens the first counts for nothing
    np.save(folder / "answers.npy", (places_L >= starts_R) & (places_L < starts_R + answer))
    np.save(folder / "every.npy", np.ones((ROWS, LENGTH), np.bool_))
    numbers = count()
    measured: dict[str, int] = {}

    def build(name: str) -> float:
        teacher = f"t{next(numbers)}"
        section = {
            "kind": "tokens",
            "name": name,
            "path": str(folder / "tokens.npy"),
            "mask": str(folder / f"{name}.npy"),
            "vocabulary": IDS,
        }
        options = TeacherOptions.model_validate(
            {
                "name": teacher,
                "factory": f"{folder / 'toy.py'}:build",
                "batch_size": BATCH,
                "encoding": {"kind": "sparse", "k": 64},
            }
        )
        source, clock = TypeAdapter(AnySource).validate_python(section), Told()
        request = BuildRequest(str(folder / "cache"), "benchmark", (source,), (options,), device="cpu")
        assert run_build(prepare_build(request), run_inline, clock).exit_code == 0
        commits = Cache.open(str(folder / "cache")).catalogue().read_commits(name, teacher)
        measured[name] = sum(commit.size_bytes for commit in commits)
        return clock.seconds

    seconds = pairs(lambda: build("answers"), lambda: build("every"), RUNS)
    yield Figure("bytes: 11.5 % labelled / all", [measured["answers"] / measured["every"]], 0.25, "at most")
    yield Figure("seconds: 11.5 % labelled / all", [a / b for a, b in seconds], 0.6, "at most")
