"""A build from an ONNX teacher, one worker, against onnxruntime in a bare loop over the same batches in memory.

The loop has its session already, and a build makes one, tries it, and waits for its first rows and its last writing: so
the rate of what a larger build asks more is measured too.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from jobs.cluster.builds import open_runner
from jobs.files.cluster_options import BuildClusterOptions
from tests.benchmarks.building import build
from tests.benchmarks.data import cifar_slice
from tests.benchmarks.pairs import Figure, pairs
from tests.benchmarks.teachers import resnet9

ROWS, MORE_ROWS = 10_240, 30_720
BATCH = 256
WIDTH = 16  # of the ResNet-9 in ../shared: 48 MFLOP an image


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the ratio of rates."""
    import onnxruntime as ort
    import torch

    from storage.cache import Cache
    from storage.inputs.arguments import to_float
    from teacher_cache.teachers.loading import load_teacher
    from teacher_cache.teachers.options import TeacherOptions

    threads = os.cpu_count() or 1
    paths = {rows: cifar_slice(folder, rows) for rows in (ROWS, MORE_ROWS)}
    caches = {rows: folder / f"cache-{rows}" for rows in paths}
    of_torch = load_teacher(TeacherOptions(name="t", **resnet9(folder, WIDTH)), torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about itself
        dynamic = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            of_torch.model, (torch.rand(2, 3, 32, 32),), folder / "net.onnx", dynamic_shapes=dynamic, verbose=False
        )
    base = TeacherOptions(name="t", kind="onnx", path=folder / "net.onnx", batch_size=BATCH)
    numbers = iter(range(1000))
    with open_runner(BuildClusterOptions(kind="local", workers=1, threads=threads)) as runner:
        for rows, path in paths.items():
            build(caches[rows], path, runner)
        opened = Cache.open(str(caches[MORE_ROWS]))
        inputs = [opened.read_inputs("cifar", shard.shard) for shard in opened.catalogue().shards("cifar")]
        batches = to_float(torch.cat([torch.from_numpy(array) for array in inputs])).split(BATCH)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        session = ort.InferenceSession(folder / "net.onnx", settings, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def cached(rows: int) -> float:
            teacher = base.model_copy(update={"name": f"t{next(numbers)}"})
            return build(caches[rows], paths[rows], runner, (teacher,), threads)

        def bare(rows: int) -> float:
            began = time.perf_counter()
            for inputs_B in batches[: rows // BATCH]:
                session.run(None, {name: inputs_B.numpy()})
            return time.perf_counter() - began

        whole = pairs(lambda: cached(ROWS), lambda: bare(ROWS))
        yield Figure("ONNX teacher / onnxruntime, bare", [b / a for a, b in whole], 0.95, "at least")
        more = pairs(lambda: cached(MORE_ROWS) - cached(ROWS), lambda: bare(MORE_ROWS - ROWS), runs=3)
        yield Figure("the same, of what more rows cost", [b / a for a, b in more], 0.95, "at least")
