"""The peak memory of a worker, bounded from the job before anything runs.

A worker holds the libraries, the teacher's weights, the activations of one batch, and the rows of two shards: one
computes while the other is read or written. Nothing in it grows with the cache (invariant 10).

Activations are measured on the meta device, which computes shapes and allocates nothing.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, NamedTuple

import numpy as np
import psutil  # type: ignore[import-untyped]

from storage.errors import BadTeacher
from storage.format.specs import DatasetSpec
from storage.tasks import task_of
from storage.views import PLAIN
from teacher_cache.building.prepared import PreparedBuild, Stage
from teacher_cache.teachers.options import TeacherOptions

SHARDS_IN_FLIGHT = 2
COPIES_OF_A_VIEW = 3  # of one shard, while it computes: its readable rows, transformed, mixed
COPIES_OF_A_SHARD = 3  # as arrays, as packed objects, and as the tensor or file on their way
LOGITS_COPIES = 3
WORKSPACE = 2.0  # convolutions reorder inputs and outputs into blocked layouts of their own


class WorkerMemory(NamedTuple):
    """A bound on one worker process, in bytes, by what holds it."""

    libraries: int
    weights: int
    activations: int
    shards: int
    source: int

    @property
    def total_bytes(self) -> int:
        return sum(self)


def project_worker(build: PreparedBuild) -> WorkerMemory:
    """Return a bound on the memory of one worker of a build: the largest of its stages, part by part."""
    import distributed  # noqa: F401 - a worker holds it, so the baseline must

    if any(stage.teacher is not None for stage in build.stages):
        import torch  # noqa: F401
    libraries = psutil.Process().memory_info().rss  # of this process, which has by now imported what a worker has
    stages = [_project_stage(stage) for stage in build.stages]
    return WorkerMemory(libraries, *(max(sizes) for sizes in zip(*stages, strict=True)))


def _project_stage(stage: Stage) -> tuple[int, int, int, int]:
    """Return bytes of weights, activations, shards and the source's own buffers."""
    dataset = stage.dataset
    # The largest shard: segments of a dataset that grew may be cut otherwise.
    rows = max(shard.stop - shard.start for shard in dataset.rows.shards())
    input_bytes = math.prod(dataset.spec.input_shape) * np.dtype(dataset.spec.input_dtype).itemsize
    row_bytes = input_bytes
    weights = activations = 0
    if stage.teacher is not None:
        blank = np.zeros((min(rows, stage.teacher.batch_size), *dataset.spec.input_shape), dataset.spec.input_dtype)
        try:
            weights, activations, feature_bytes = _run_once(stage.teacher, dataset.spec, blank, "meta")
        except BadTeacher:  # its code looks at values, which a meta tensor has none of: run a batch for real
            weights, activations, feature_bytes = _run_once(stage.teacher, dataset.spec, blank, "cpu")
        sites = math.prod(task_of(dataset.spec).sites(dataset.spec.input_shape))
        row_bytes += sites * stage.teacher.encoding.bytes_per_row(dataset.spec.num_classes) + feature_bytes
        # Of the logits of a batch: their log-probabilities, those as probabilities, and what an encoding works with.
        activations += LOGITS_COPIES * len(blank) * sites * dataset.spec.num_classes * 4
    source = dataset.source.buffer_bytes() if stage.teacher is None else 0
    shards = SHARDS_IN_FLIGHT * COPIES_OF_A_SHARD * rows * row_bytes
    if stage.view != PLAIN:  # beside the rows as they are stored
        shards += COPIES_OF_A_VIEW * rows * input_bytes
    return weights, int(WORKSPACE * activations), shards, source


def _run_once(options: TeacherOptions, dataset: DatasetSpec, blank: np.ndarray, device: str) -> tuple[int, int, int]:
    """Return bytes of a teacher's weights, of a batch's activations alive at once, and of a row's stored features."""
    import torch

    from teacher_cache.teachers.loading import load_teacher

    full_precision = options.model_copy(update={"autocast": "fp32"})  # an upper bound, and meta has no autocast
    teacher = load_teacher(full_precision, torch.device("cpu"))
    weights = sum(t.numel() * t.element_size() for t in teacher.model.state_dict().values())
    teacher.to(torch.device(device))
    with _live_bytes() as live:
        _, features = teacher(torch.from_numpy(blank).to(device), dataset)
    encoded = [options.features[name].encode(values) for name, values in features.items()]
    return weights, live.peak, sum(values[0].numel() * values.element_size() for values in encoded)


def _live_bytes() -> Any:
    """Return a context that counts the bytes of tensors alive within it; `peak` is the most at one time."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class LiveBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.peak = self._live = 0
            self._seen: set[int] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if hasattr(tensor, "untyped_storage"):
                    self._hold(tensor.untyped_storage())
            return out

        def _hold(self, storage: Any) -> None:
            key, size = storage._cdata, storage.nbytes()  # noqa: SLF001 - views of one storage share it
            if key not in self._seen:
                self._seen.add(key)
                self._live += size
                self.peak = max(self.peak, self._live)
                weakref.finalize(storage, self._free, key, size)

        def _free(self, key: int, size: int) -> None:
            self._seen.discard(key)
            self._live -= size

    return LiveBytes()
