"""Streamed rows of a cache behind 20 ms of latency, against the same from a folder, and kept on this machine.

A web server in a process of its own, which waits before each answer, stands for the store: its client is that of S3.
The student is a GPU of so many rows a second, which is a pause: whoever waits for rows beside it, loses time.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.pairs import Figure, pairs
from tests.web import WithParts, serve

if TYPE_CHECKING:
    from storage.cache import Cache

LATENCY_S = 0.02
ROWS_PER_SHARD, BATCH, WINDOW_SHARDS = 1000, 250, 4
STUDENT_ROWS_PER_S = {40_000: (10_000, 30_000, 100_000), 160_000: (100_000,)}  # by the rows of an epoch
RUNS = 5
SERVER = "from tests.benchmarks.store import serve_slowly; import sys; serve_slowly(sys.argv[1])"


class Slow(WithParts):
    """A server a fiftieth of a second away, whose connections stay open."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802 - the name that its base gives it
        time.sleep(LATENCY_S)
        super().do_GET()

    def log_message(self, form: str, *arguments: Any) -> None:
        pass


def serve_slowly(folder: str) -> None:
    """Serve a folder until nobody listens any more; the address is the first line."""
    with serve(Path(folder), Slow) as (url, _):
        print(url, flush=True)
        sys.stdin.read()


def measure(folder: Path) -> Iterator[Figure]:
    """Yield ratios of rates: the folder's seconds of an epoch by those of the store, without and with `keep`."""
    for rows in STUDENT_ROWS_PER_S:
        yield from _figures(folder / str(rows), rows)


def _figures(folder: Path, rows: int) -> Iterator[Figure]:
    from storage.cache import Cache
    from storage.cache.copies.publishing import publish
    from tests.student_train.toys import Recipe, write_cache
    from tests.teacher_cache.toys import Silent

    recipe = Recipe(rows=rows, rows_per_shard=ROWS_PER_SHARD, shape=(3, 32, 32), classes=10, features={})
    here = write_cache(folder / "cache", recipe)
    publish(here, Silent())
    (folder / "scratch").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder / "cache")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        there = Cache.open(server.stdout.readline().strip())
        kept = there.kept_in(folder / "scratch", 10**9)
        for rows_per_s in STUDENT_ROWS_PER_S[rows]:
            local = _epochs(here, rows_per_s)
            for name, cache in (("from a store at 20 ms", there), ("the same, kept", kept)):
                rates = [a / b for a, b in pairs(local, _epochs(cache, rows_per_s), RUNS)]
                of = f"{rows_per_s:,} rows/s of {rows // ROWS_PER_SHARD} shards"
                yield Figure(f"{name}, {of} / folder", rates, 0.9, "at least")
        server.communicate("")


def _epochs(cache: Cache, rows_per_s: int) -> Callable[[], float]:
    """Return what measures the seconds of a streamed epoch, each time the next one."""
    import torch

    from storage.encodings import Capability
    from student_train.feed.batches import Needs, SoftNeed
    from student_train.feed.residency import FeedPool
    from student_train.feed.selection import select_rows

    needs = Needs(labels=True, soft=frozenset({SoftNeed("sage", Capability("logits", 1.0))}))
    pool = FeedPool(cache, torch.device("cpu"), place="stream", window_shards=WINDOW_SHARDS)
    feed, numbers = pool.feed(select_rows(cache.samples(), "toy", needs), needs), iter(range(10_000))

    def epoch() -> float:
        began, free_s = time.perf_counter(), time.perf_counter()
        for batch in feed.shuffled(BATCH, seed=0, epoch=next(numbers)):
            begins_s = max(free_s, time.perf_counter())  # when it is done with the batch before
            free_s = begins_s + len(batch.shown) / rows_per_s
            time.sleep(max(0.0, begins_s - time.perf_counter()))  # one batch is sent ahead
        time.sleep(max(0.0, free_s - time.perf_counter()))
        return time.perf_counter() - began

    return epoch
