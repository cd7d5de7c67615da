"""A stage of a build whose shards do nothing, or sleep: all of a build but for a worker's own part and its commits.

The runner, the lease, the counting and the progress are those of `cache build`; what a worker is sent is as large.

    python -m tests.empty_work ADDRESS SHARDS SECONDS    # prints one line of JSON
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from teacher_cache.work.pieces import AskWork, Done

ROOT = Path(__file__).parent.parent
_last = threading.local()


def perform_nothing(work: AskWork) -> Done:
    """Sleep as long as the work says, in place of a teacher; tell how long this thread had nothing to do before."""
    began = time.monotonic()
    idle_s = began - getattr(_last, "ended", began)
    time.sleep(float(work.device))
    _last.ended = time.monotonic()
    return Done(work.key, 1, 0, 0, idle_s, won=False)  # not won: there is no commit that the ledger could read


def run_stage(address: str, shards: int, seconds: float) -> dict[str, Any]:
    """Return what a stage of so many shards took, of which each sleeps so long."""
    from jobs.cluster import builds
    from jobs.cluster.attendance import Attendance
    from jobs.files.cluster_options import BuildClusterOptions
    from jobs.show import terminal
    from storage.cache import Cache
    from storage.cache.lease import hold
    from storage.format.rows import ShardRows
    from storage.format.shards import ShardKey
    from teacher_cache.building.stages import Stages
    from tests.many_workers import peak_bytes

    builds.perform = perform_nothing  # type: ignore[assignment,attr-defined]
    options, attendance = BuildClusterOptions(kind="address", address=address), Attendance()
    idle_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder, terminal.watching("rows") as watch:
        cache = Cache.create(f"{folder}/cache")
        with (
            hold(cache.objects, (0, 1), wait=False, note=watch.note, do="") as lease,
            builds.open_runner(options, None, attendance) as runner,
        ):
            stages = Stages(cache, lease.kept(runner), watch)
            rows = [ShardRows(number, number, number + 1) for number in range(shards)]
            key = ShardKey("dataset", "teacher", "plain", 0)
            works, first = (
                (
                    AskWork(
                        cache.url, key._replace(shard=row.shard), (0, 1), "t" * 1000, "p" * 1000, "j", str(seconds), 1
                    )
                    for row in some
                )
                for some in (rows, rows[:1])
            )
            list(runner(first))  # whether workers are as we are, is asked once
            before = peak_bytes(os.getpid())
            began, computing = time.monotonic(), time.process_time()
            stages.run("dataset/teacher", rows, rows, works, lambda done: idle_s.append(done.seconds))
            took, computed = time.monotonic() - began, time.process_time() - computing
    idle_s.sort()
    return {
        "shards": stages.report.lost + stages.report.built,
        "seconds": took,
        "client_processor_s": computed,
        "client_bytes": peak_bytes(os.getpid()),
        "client_bytes_before": before,
        "idle_s": {"median": idle_s[len(idle_s) // 2], "most of 100": idle_s[len(idle_s) * 99 // 100]},
    }


def measured(address: str, shards: int, seconds: float) -> dict[str, Any]:
    """Return the same of a process of its own."""
    command = [sys.executable, "-m", "tests.empty_work", address, str(shards), str(seconds)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}\n{ended.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    run = importlib.import_module("tests.empty_work").run_stage  # by the name that workers know
    sys.stdout.write(f"{json.dumps(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))}\n")
