"""A cache of a million shards: what it takes to look at it, once its ledger is written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.many_shards import make_cache
from tests.benchmarks.pairs import Figure

SHARDS = 1_000_000  # 4 GB of disk, and a quarter of an hour
RUNS = 3


def measure(folder: Path) -> Iterator[Figure]:
    """Yield seconds and peak memory of whole commands."""
    job = str(make_cache(folder, SHARDS))
    cache = str(folder / "cache")
    yield Figure("1,000,000 shards: the build that reads all", [_run("build", job)[0]], 1800.0, "at most", " s")
    for what, arguments, seconds in (
        ("status", ("status", cache), 30.0),
        ("a dry run", ("build", job, "--dry-run"), 30.0),
        ("a build of nothing", ("build", job), 30.0),
        ("a count", ("query", cache, "SELECT count(*) FROM samples"), 10.0),
    ):
        runs = [_run(*arguments) for _ in range(RUNS)]
        yield Figure(f"1,000,000 shards: {what}", [run[0] for run in runs], seconds, "at most", " s")
        yield Figure(f"1,000,000 shards: {what}, memory", [run[1] for run in runs], 1.0, "at most", " GB")


def _run(*arguments: str) -> tuple[float, float]:
    """Return seconds of a command, and the peak of its memory in GB."""
    began = time.perf_counter()
    command = [str(Path(sys.executable).with_name("cache")), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1e6  # of kB
