"""Write and read one shard: a Zarr group as one object, against a folder of objects as format 2 had it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.benchmarks.pairs import RUNS, Figure

if TYPE_CHECKING:
    from storage.format.shards import Belonging

ROWS = 2048


def measure(folder: Path) -> Iterator[Figure]:
    """Yield seconds as one object over seconds as a folder: sparse targets with a feature, and pixels."""
    from storage.format.shards import Belonging

    random = np.random.default_rng(0)
    targets = {
        "ids": np.sort(random.zipf(1.3, (ROWS, 16)).clip(max=999), axis=1).astype(np.uint16),
        "values": random.random((ROWS, 16)).astype(np.float16),
        "rest": random.random((ROWS, 2)).astype(np.float16),
        "lse": random.random((ROWS, 2), np.float32),
        "statistics": random.random((ROWS, 7)).astype(np.float16),
        "feature/pooled": random.random((ROWS, 128)).astype(np.float16),
    }
    pixels = {"inputs": random.integers(0, 256, (ROWS, 3, 32, 32), np.uint8)}
    belonging = Belonging("c" * 32, "d" * 32, "e" * 32)
    for what, arrays in (("sparse targets", targets), ("pixels", pixels)):
        pairs = [
            (_seconds(folder / f"{what}/one", run, arrays, belonging), _seconds(folder / what, run, arrays, None))
            for run in range(RUNS + 1)
        ]
        for step, (verb, reach) in enumerate((("written", 1.0), ("read", 1.2))):
            ratios = [one[step] / of_many[step] for one, of_many in pairs[1:]]  # the first makes the folders
            yield Figure(f"a shard of {what}, {verb}", ratios, reach, "at most")


def _seconds(folder: Path, run: int, arrays: dict[str, np.ndarray], belonging: Belonging | None) -> tuple[float, float]:
    """Return seconds to write one shard, and to read all its arrays."""
    import pyarrow as pa

    from storage.format.committing import read_arrays, write_shard
    from storage.format.objects import LocalObjects
    from storage.format.shards import ShardKey

    objects, table = LocalObjects(folder), pa.table({"row": pa.array(range(ROWS), pa.int64())})
    began = time.perf_counter()
    key = ShardKey("d", "t", "plain", run)
    commit = write_shard(objects, key, rows=(0, ROWS), arrays=arrays, table=table, about={}, belonging=belonging)
    assert commit is not None
    written = time.perf_counter()
    read_arrays(objects, commit, arrays)
    return written - began, time.perf_counter() - written
