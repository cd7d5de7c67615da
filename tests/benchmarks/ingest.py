"""Ingest of CIFAR-10 by two workers, against a bare loop that decodes the same JPEGs in two processes."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Iterator
from io import BytesIO
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
from PIL import Image

from jobs.cluster.builds import open_runner
from jobs.files.cluster_options import BuildClusterOptions
from tests.benchmarks.building import build
from tests.benchmarks.data import TRAIN, require
from tests.benchmarks.pairs import Figure, pairs

WORKERS = 2


def decode_half(half: int, done: Barrier, seconds: Queue[float]) -> None:
    """Decode every second image, again and again; each time all processes begin together."""
    import pyarrow.parquet as pq

    table = pq.read_table(TRAIN, columns=["image"])["image"].combine_chunks().field("bytes")
    images = table.to_pylist()[half::WORKERS]
    while True:
        done.wait()
        began = time.perf_counter()
        for image in images:
            np.asarray(Image.open(BytesIO(image)).convert("RGB"))
        seconds.put(time.perf_counter() - began)


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the ratio of rates."""
    path, cache = require(TRAIN), folder / "cache"
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(WORKERS + 1), context.Queue()
    processes = [context.Process(target=decode_half, args=(i, barrier, seconds), daemon=True) for i in range(WORKERS)]
    for process in processes:
        process.start()
    with open_runner(BuildClusterOptions(kind="local", workers=WORKERS)) as runner:

        def cached() -> float:
            shutil.rmtree(cache, ignore_errors=True)
            return build(cache, path, runner)

        def bare() -> float:
            barrier.wait()
            return max(seconds.get() for _ in processes)

        yield Figure("ingest / bare JPEG decoding", [b / a for a, b in pairs(cached, bare)], 0.7, "at least")
    for process in processes:
        process.terminate()
