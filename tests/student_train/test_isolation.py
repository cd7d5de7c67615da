"""Invariant 7: a running `student train` has loaded no teacher code and opened no teacher weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.cache import Cache
from tests.student_train.toys import HINT, KD, LABELS, student

FORBIDDEN = {
    "teacher_cache",
    "jobs",
    "dask",
    "distributed",
    "sklearn",
    "transformers",
    "timm",
    "torchvision",
    "typer",
    "rich",
}


def trained(cache: Cache, runs: Path, *more: str) -> dict[str, Any]:
    job = json.dumps([student(objective=[LABELS, KD, HINT]).model_dump(mode="json", exclude_none=True)])
    command = [sys.executable, "-m", "tests.student_train.trainer", cache.url, str(runs), job, "{}", *more]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(output.splitlines()[-1]))


def forbidden(process: dict[str, Any]) -> set[str]:
    return {name.split(".")[0] for name in process["modules"]} & FORBIDDEN


@pytest.fixture(scope="module")
def process(toy_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(toy_cache, tmp_path_factory.mktemp("runs"))


def test_training_imports_no_teacher_and_no_cluster(process: dict[str, Any]) -> None:
    assert forbidden(process) == set()


@pytest.mark.slow
def test_an_import_of_a_teacher_would_be_seen(toy_cache: Cache, tmp_path: Path) -> None:
    assert forbidden(trained(toy_cache, tmp_path, "dask")) == {"dask"}


def test_the_cache_that_it_reads_is_seen_among_the_files(process: dict[str, Any], toy_cache: Cache) -> None:
    assert any(path.startswith(f"{toy_cache.url}/toy/sage/plain") for path in process["opened"])


def test_importing_the_room_imports_no_torch() -> None:
    code = (
        "import sys, student_train.options.sections, student_train.run_files.records; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
