"""`cache status` over 20,000 commits, compacted and not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.pairs import RUNS, Figure

COMMITS = 20_000
ROWS_PER_SHARD = 8


def measure(folder: Path) -> Iterator[Figure]:
    """Yield seconds of the whole command."""
    import polars as pl
    import pyarrow as pa

    from storage.cache import Cache
    from storage.format.rows import Segment, create_segment
    from storage.format.shards import Commit, Member, ShardKey, Whole
    from storage.format.specs import DatasetSpec

    cache = Cache.create(str(folder / "cache"))
    spec = DatasetSpec(name="d", source={}, classes=["a"], input_shape=(1,), input_dtype="uint8")
    cache.objects.put("d/dataset.json", spec.to_json())
    num_rows = COMMITS * ROWS_PER_SHARD
    extents = pl.DataFrame({"file": ["f"], "size": [1], "version": ["v"], "position": [0], "rows": [num_rows]})
    create_segment(cache.objects, "d", 0, Segment(extents, ROWS_PER_SHARD))
    paths = ("inputs/c/0/0", "inputs/zarr.json", "zarr.json")
    members = tuple(Member(path, 100 * i, 100, "0" * 32) for i, path in enumerate(paths))
    whole, belonging = Whole(300, "0" * 32), cache.promises.of("d")
    os.makedirs(folder / "cache/d/ingest")
    for shard in range(COMMITS):
        start = shard * ROWS_PER_SHARD
        table = pa.table({"row": pa.array(range(start, start + ROWS_PER_SHARD), pa.int64())})
        key, about = ShardKey("d", None, "plain", shard), {"seconds": 1.0, "quarantined": 0, "inputs_digest": ""}
        rows, attempt = (start, start + ROWS_PER_SHARD), f"{shard:08x}"
        commit = Commit(key, *rows, attempt, members, table, about, whole=whole, belonging=belonging)
        (folder / "cache" / key.commit_path).write_bytes(commit.to_parquet())

    command = [str(Path(sys.executable).with_name("cache")), "status", str(folder / "cache")]
    first = [_seconds(command) for _ in range(2)]
    yield Figure("status of 20,000 commits, no ledger yet", first, 30.0, "at most", " s (no promise)")
    cache.catalogue().ledger().compact()
    yield Figure("status of 20,000 commits", [_seconds(command) for _ in range(RUNS)], 3.0, "at most", " s")


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began
