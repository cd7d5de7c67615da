"""A store of a hundred thousand objects: requests, seconds and memory of the commands that look at all of it.

The store is `tests/s3_folder.py` in a process of its own, which counts: without latency, then 20 ms away.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.many_shards import make_cache
from tests.benchmarks.pairs import Figure
from tests.s3_folder import variables

OBJECTS = int(os.environ.get("OBJECTS", "100000"))  # half of them are commits
LATENCIES_S = (0.0, 0.02)
COMMANDS = {
    "status without a ledger": ("status",),
    "a dry run of gc": ("gc", "--dry-run"),
    "a count without a ledger": ("query", "SELECT count(*) FROM samples"),
}


def measure(folder: Path) -> Iterator[Figure]:
    """Yield seconds, memory and requests of whole commands."""
    make_cache(folder, OBJECTS // 2)
    for path in (folder / "cache").glob("ledger/*"):  # the first look has none
        path.unlink()
    for latency_s in LATENCIES_S:
        command = [sys.executable, "-m", "tests.s3_folder", str(folder), str(latency_s)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            environment = {**os.environ, **variables(server.stdout.readline().strip())}
            for what, (name, *more) in COMMANDS.items():
                seconds, of_processor, gigabytes = _run(environment, name, *more)
                server.stdin.write("\n")
                server.stdin.flush()
                asked = json.loads(server.stdout.readline())
                of = f"{what}, {1000 * latency_s:.0f} ms"
                requests = ", ".join(f"{count:,} {kind}" for kind, count in sorted(asked.items()))
                yield Figure(f"{of}: {requests}", [seconds], 300.0, "at most", " s")
                yield Figure(f"{of}: processor", [of_processor], 120.0, "at most", " s")
                yield Figure(f"{of}: memory", [gigabytes], 0.5, "at most", " GB")
            server.stdin.close()


def _run(environment: dict[str, str], name: str, *more: str) -> tuple[float, float, float]:
    """Return seconds of a command by the clock and of the processor, and the peak of its memory in GB."""
    command = [str(Path(sys.executable).with_name("cache")), name, "s3://bucket/cache", *more]
    began, peak_kb, pid = time.perf_counter(), 0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while not pid:  # what its `rusage` says of memory is of this process too, from which it was forked
            peak_kb = max(peak_kb, _peak_kb(process.pid))
            time.sleep(0.05)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, peak_kb / 1e6


def _peak_kb(pid: int) -> int:
    """Return the most memory that a program has held so far; 0 once it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0
