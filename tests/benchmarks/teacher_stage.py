"""The teacher stage of a build, one worker, against a bare loop of the same forward passes on data in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.cluster.builds import open_runner
from jobs.files.cluster_options import BuildClusterOptions
from tests.benchmarks.building import build
from tests.benchmarks.data import cifar_slice
from tests.benchmarks.pairs import Figure, pairs
from tests.benchmarks.teachers import resnet9

ROWS = 10_240
BATCH = 256
WIDTH = 16  # of the ResNet-9 in ../shared: 48 MFLOP an image


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the ratio of rates."""
    import torch

    from storage.cache import Cache
    from storage.inputs.arguments import to_float
    from teacher_cache.teachers.loading import load_teacher
    from teacher_cache.teachers.options import TeacherOptions

    path, cache, threads = cifar_slice(folder, ROWS), folder / "cache", os.cpu_count() or 1
    base = TeacherOptions(name="t", **resnet9(folder, WIDTH), batch_size=BATCH)
    numbers = iter(range(1000))
    with open_runner(BuildClusterOptions(kind="local", workers=1, threads=threads)) as runner:
        build(cache, path, runner)
        opened = Cache.open(str(cache))
        inputs = [opened.read_inputs("cifar", shard.shard) for shard in opened.catalogue().shards("cifar")]
        inputs_N = to_float(torch.cat([torch.from_numpy(array) for array in inputs]))
        teacher = load_teacher(base, torch.device("cpu"))
        torch.set_num_threads(threads)

        def cached() -> float:
            return build(cache, path, runner, (base.model_copy(update={"name": f"t{next(numbers)}"}),), threads)

        def bare() -> float:
            began = time.perf_counter()
            with torch.inference_mode():
                for inputs_B in inputs_N.split(BATCH):
                    teacher.model(inputs_B)
            return time.perf_counter() - began

        yield Figure("teacher stage / bare forward passes", [b / a for a, b in pairs(cached, bare)], 0.95, "at least")
