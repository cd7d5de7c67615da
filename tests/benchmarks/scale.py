"""How far one scheduler goes: workers that sleep, tasks that are empty, what is idle in between, and memory held.

Workers are processes forked from one (tests/many_workers.py), so that 64 of them fit into two processors; the scheduler
is Dask's own program. A sleeping build is `cache build` as it is, over a teacher that sleeps
(tests/sleeping_teacher.py); empty shards go through its runner, lease, counting and progress (tests/empty_work.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.pairs import Figure

WORKERS = (1, 2, 4, 8, 16, 32, 64)
A_CORE = 4
SLEEP_S = 1.0
SHARDS = 20  # of each worker; a worker takes half a second to load a teacher, which is of all of them
EMPTY = 100_000
RUNS = 3


def measure_sleeping(folder: Path) -> Iterator[Figure]:
    """Yield shards a second of builds over shards that sleep, of what so many workers could do.

    A shard takes 25 ms of processor beside its sleep, and a worker half a second to load its teacher, so that more
    workers than `A_CORE` for each core of this machine say what the cores bear, not what a build does.
    """
    from tests.many_workers import many_workers
    from tests.sleeping_teacher import asking_s, write_job

    for workers in (count for count in WORKERS if count <= A_CORE * len(os.sched_getaffinity(0))):
        with many_workers(folder, workers) as place:
            job = write_job(folder, place.address, workers * SHARDS, SLEEP_S)
            share = SHARDS * SLEEP_S / asking_s(job)
        yield Figure(f"cache build, {workers} workers: of linear", [share], 0.95, "at least")


def measure_sleeping_tasks(folder: Path) -> Iterator[Figure]:
    """Yield the same of shards of which a worker does nothing but sleep."""
    from tests.empty_work import measured
    from tests.many_workers import many_workers

    for workers in WORKERS:
        with many_workers(folder, workers, at_once=1) as place:
            found = measured(place.address, workers * SHARDS, SLEEP_S)
            share = found["shards"] * SLEEP_S / workers / found["seconds"]
        yield Figure(f"sleeping shards, {workers} workers: of linear", [share], 0.95, "at least")


def measure_empty(folder: Path) -> Iterator[Figure]:
    """Yield shards a second, what a worker is idle between two, and the memory of client and scheduler."""
    from tests.empty_work import measured
    from tests.many_workers import many_workers

    with many_workers(folder, 8) as place:
        runs = [measured(place.address, 3000, 0.0) for _ in range(RUNS)]
        yield Figure("empty shards", [run["shards"] / run["seconds"] for run in runs], 250.0, "at least", "/s")
    with many_workers(folder, 2) as place:
        runs = [measured(place.address, 400, 0.05) for _ in range(RUNS)]
        yield Figure("idle between shards", [run["idle_s"]["median"] * 1e3 for run in runs], 5.0, "at most", " ms")
    with many_workers(folder, 8) as place:
        before = place.scheduler_bytes()
        found = measured(place.address, EMPTY, 0.0)
        grown = found["client_bytes"] - found["client_bytes_before"]
        yield Figure(f"{EMPTY:,} shards: the client grows by", [grown / 1e6], 50.0, "at most", " MB")
        grown = place.scheduler_bytes() - before
        yield Figure(f"{EMPTY:,} shards: the scheduler grows by", [grown / 1e6], 100.0, "at most", " MB")
