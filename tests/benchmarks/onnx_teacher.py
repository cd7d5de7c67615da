"""A build from an ONNX teacher, one worker, against onnxruntime in a bare loop over the same batches in memory."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from jobs.cli.building import open_runner
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
    import onnxruntime as ort
    import torch

    from storage.cache import Cache
    from storage.inputs.arguments import to_float
    from teacher_cache.teachers.loading import load_teacher
    from teacher_cache.teachers.options import TeacherOptions

    path, cache, threads = cifar_slice(folder, ROWS), folder / "cache", os.cpu_count() or 1
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
        build(cache, path, runner)
        opened = Cache.open(str(cache))
        inputs = [opened.read_inputs("cifar", shard.shard) for shard in opened.catalogue().shards("cifar")]
        batches = to_float(torch.cat([torch.from_numpy(array) for array in inputs])).split(BATCH)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        session = ort.InferenceSession(folder / "net.onnx", settings, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def cached() -> float:
            return build(cache, path, runner, (base.model_copy(update={"name": f"t{next(numbers)}"}),), threads)

        def bare() -> float:
            began = time.perf_counter()
            for inputs_B in batches:
                session.run(None, {name: inputs_B.numpy()})
            return time.perf_counter() - began

        yield Figure("ONNX teacher / onnxruntime, bare", [b / a for a, b in pairs(cached, bare)], 0.95, "at least")
