"""Peak memory of a worker and of a streamed student, against the bound that --dry-run prints."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.data import TRAIN, require
from tests.benchmarks.pairs import Figure
from tests.benchmarks.teachers import resnet9

ALLOWED = 1.3
CACHE_JOB = """
cache = "cache"
[[dataset]]
name = "cifar"
kind = "parquet_images"
path = "{path}"
validation = 0.1
[[teacher]]
name = "t"
factory = "{factory}"
arguments = {{ width = 16 }}
weights = "{weights}"
"""
STUDENT_JOB = """
cache = "cache"
runs = "runs"
train = "cifar/train"
validation = "cifar/validation"
residency = "stream"
window_shards = 4
[[student]]
name = "s"
architecture = "cnn"
options = { widths = [16, 32, 64] }
epochs = 1
objective = [{ loss = "kd", teacher = "t" }]
"""


def measure(folder: Path) -> Iterator[Figure]:
    """Yield measured peak over promised bound, in the worker and in the student."""
    cache_job, student_job = folder / "cache.toml", folder / "students.toml"
    cache_job.write_text(CACHE_JOB.format(path=require(TRAIN), **resnet9(folder, 16)))
    student_job.write_text(STUDENT_JOB)
    bin_folder = Path(sys.executable).parent
    build = [str(bin_folder / "cache"), "build", str(cache_job), "--workers", "1"]
    bound = run_json([*build, "--dry-run", "--json"])["worker_memory_bytes"]
    yield Figure("peak of a worker / its bound", [peak_bytes(build, children=True) / bound], ALLOWED, "at most")
    train = [str(bin_folder / "student"), "train", str(student_job)]
    bound = run_json([*train, "--dry-run", "--json"])["memory"]["host_bytes"]
    yield Figure(
        "peak of a streamed student / its bound", [peak_bytes(train, children=False) / bound], ALLOWED, "at most"
    )


def run_json(command: list[str]) -> dict[str, Any]:
    """Return what a command prints."""
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # type: ignore[no-any-return]


def peak_bytes(command: list[str], *, children: bool) -> int:
    """Return the largest resident size, in bytes, of a command's process, or of any of its descendants."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watched, peak = psutil.Process(process.pid), 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                family = watched.children(recursive=True) if children else [watched]
                peak = max([peak, *(one.memory_info().rss for one in family)])
            except psutil.Error:
                pass  # a process that has just ended
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    process.wait()
    thread.join()
    assert process.returncode == 0, command
    return peak
