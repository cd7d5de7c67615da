"""A cache and students' jobs as a user would have them: files, and the real programs on them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.data import cifar_slice
from tests.benchmarks.teachers import linear

OBJECTIVE = [{"loss": "labels", "weight": 0.1}, {"loss": "kd", "teacher": "linear", "weight": 0.9}]
DIGITS = {"name": "digits", "kind": "digits", "validation": 0.2}


def cifar(folder: Path, rows: int, **options: Any) -> dict[str, Any]:
    """Return the `[[dataset]]` of a slice of CIFAR-10, a tenth of it held."""
    path = str(cifar_slice(folder, rows))
    return {"name": "cifar", "kind": "parquet_images", "path": path, "validation": 0.1} | options


def build_cache(folder: Path, dataset: Mapping[str, Any], teacher: Mapping[str, Any] | None = None) -> None:
    """Build `folder/cache`, with a linear teacher unless another is given."""
    teacher = teacher or {"name": "linear"} | linear(folder, 64 if dataset["kind"] == "digits" else 3072)
    sections = {"cache": "cache", "dataset": [dataset], "teacher": [teacher], "cluster": {"kind": "inline"}}
    run_s("cache", "build", write_job(folder / "cache.toml", sections))


def write_students(path: Path, students: Sequence[Mapping[str, Any]], dataset: str, **top: Any) -> Path:
    """Write the job of some students of `cache`, beside which it lies; their runs are in a folder of the job's name."""
    rows = {"train": f"{dataset}/train", "validation": f"{dataset}/validation"}
    return write_job(path, {"cache": "cache", "runs": path.stem, **rows, **top, "student": students})


def write_job(path: Path, job: Mapping[str, Any]) -> Path:
    """Write a job as TOML."""
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in job.items()))
    return path


def program(name: str, *arguments: object) -> list[str]:
    """Return the command of one of our programs."""
    return [str(Path(sys.executable).parent / name), *map(str, arguments)]


def run_s(name: str, *arguments: object) -> float:
    """Run one of our programs; return the seconds from its start to its end."""
    began = time.perf_counter()
    ended = subprocess.run(program(name, *arguments), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return time.perf_counter() - began


def _toml(value: Any) -> str:
    """Return a value in TOML, whose strings, numbers and lists are JSON's and whose tables are inline."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
