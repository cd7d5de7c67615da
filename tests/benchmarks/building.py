"""Time the stages of a build on a cluster that is already up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from storage.datasets import AnySource
from teacher_cache.building.build import run_build
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.building.runners import Runner
from teacher_cache.building.survey import prepare_build
from teacher_cache.teachers.options import TeacherOptions


class StageClock:
    """Watches a build, and notes how long its last stage with work took."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def begin(self, name: str, total: int | None, done: int = 0, unit: str | None = None) -> None:
        self._began = time.perf_counter()

    def advance(self, count: int, detail: str = "") -> None:
        self.seconds = time.perf_counter() - self._began

    def detail(self, text: str) -> None:
        pass

    def complete(self) -> None:
        pass

    def note(self, text: str) -> None:
        raise AssertionError(text)


def source(path: Path) -> Any:
    """Return a `parquet_images` source named cifar."""
    return TypeAdapter(AnySource).validate_python({"kind": "parquet_images", "name": "cifar", "path": str(path)})


def build(
    cache: Path, path: Path, runner: Runner, teachers: tuple[TeacherOptions, ...] = (), threads: int = 1
) -> float:
    """Build what is missing; return the seconds of the last stage that had work, from its first shard to its last."""
    clock = StageClock()
    request = BuildRequest(str(cache), "benchmark", (source(path),), teachers, threads=threads, device="cpu")
    report = run_build(prepare_build(request), runner, clock)
    assert report.exit_code == 0
    return clock.seconds
