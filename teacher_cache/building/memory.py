"""The peak memory of a worker, bounded from the job before anything runs.

A worker holds the libraries, the teacher's weights, the activations of one batch, and the rows of two shards: one
computes while the other is read or written. Nothing in it grows with the cache (invariant 10). Stages come one after
the other, and what one has held the next one uses again: the bound is that of the largest.

Activations are measured on the meta device, which computes shapes and allocates nothing.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil  # type: ignore[import-untyped]

from storage.datasets.text.density import SPREAD
from storage.encodings import Encoding
from storage.errors import BadTeacher
from storage.format.specs import DatasetSpec
from storage.inputs.encoded import ROOM_BYTES, proven_bytes
from storage.tasks import task_of
from storage.views import PLAIN
from storage.views.check import own_size
from teacher_cache.building.prepared import PreparedBuild, PreparedDataset, Stage
from teacher_cache.building.sources.pictures import most_kept_bytes
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.model import part_sites
from teacher_cache.teachers.options import TeacherOptions
from teacher_cache.work.answering import AHEAD
from teacher_cache.work.pieces import TURNS_AHEAD

SHARDS_IN_FLIGHT = 2
COPIES_OF_A_VIEW = 3  # of one shard, while it computes: its readable rows, transformed, mixed
COPIES_OF_A_SHARD = 3  # as arrays, as packed objects, and as the tensor or file on their way
TRIED_SITES = 128  # that are encoded, to see what that holds; of fewer some of it is more
MORE_ROWS = 4  # of a range of bytes than are guessed, where nobody has looked: at most a token of each byte
WORKSPACE = 2.0  # convolutions reorder inputs and outputs into blocked layouts of their own
FUSED = 1  # what PyTorch calls attention that never holds the scores of all pairs


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


class GpuBuildMemory(NamedTuple):
    """Bounds on a build whose teachers have GPUs: a worker that ingests, one that asks a teacher, and its GPU."""

    ingest: WorkerMemory
    teacher: WorkerMemory
    gpu: WorkerMemory


def hold_libraries(teachers: Iterable[TeacherOptions]) -> int:
    """Return the bytes of a process that has imported what a worker does, this one: asked before it reads anything."""
    import distributed  # noqa: F401 - a worker holds it, so the baseline must

    import teacher_cache.work.perform  # noqa: F401

    for origin in {teacher.origin for teacher in teachers}:
        KINDS[origin].import_libraries()
    return _resident_bytes()


def project_worker(build: PreparedBuild, libraries: int | None = None) -> WorkerMemory:
    """Return a bound on the memory of one worker of a build: that of its largest stage.

    Args:
        build: what it is to do.
        libraries: as `hold_libraries` gave them; by default what this process holds once it has imported them.
    """
    if libraries is None:
        libraries = hold_libraries(stage.teacher for stage in build.stages if stage.teacher is not None)
    return _largest(libraries, [_sizes(stage, build).on_cpu(SHARDS_IN_FLIGHT) for stage in build.stages])


def project_with_gpus(build: PreparedBuild, at_once: int) -> GpuBuildMemory:
    """Return bounds on a build that asks teachers on GPUs, of which this process has one.

    Args:
        build: it has teachers.
        at_once: shards that the worker of a GPU has at a time.
    """
    import torch

    asked = [stage for stage in build.stages if stage.teacher is not None]
    libraries = hold_libraries(())
    ingests = [_sizes(stage, build).on_cpu(SHARDS_IN_FLIGHT) for stage in build.stages if stage.teacher is None]
    sizes = [_sizes(stage, build) for stage in asked]
    hold_libraries(stage.teacher for stage in asked if stage.teacher is not None)
    torch.zeros(1, device="cuda")  # CUDA itself holds some of the host's memory
    return GpuBuildMemory(
        _largest(libraries, ingests),
        _largest(_resident_bytes(), [each.beside_gpu(at_once) for each in sizes]),
        _largest(0, [each.on_gpu() for each in sizes]),
    )


def _resident_bytes() -> int:
    """Return what this process holds, which has by now imported what a worker has."""
    return int(psutil.Process().memory_info().rss)


def _largest(libraries: int, stages: Sequence[tuple[int, int, int, int]]) -> WorkerMemory:
    return WorkerMemory(libraries, *max(stages, key=sum))


class _Sizes(NamedTuple):
    """Bytes that a stage takes.

    Attributes:
        weights, activations: of its teacher, if it has one.
        heard: of one batch, hidden states or logits that wait until they are encoded.
        sites, classes: of one batch; logits are those of `part_sites` at a time,
        copies: and so many times that is held while they are encoded, themselves among them.
        inputs, shard: of its largest shard, the inputs alone and all of it.
        seen: of the inputs as a view shows them, while it is made; 0 without one.
        source: the source's own buffers, or pictures that are being decoded.
    """

    weights: int
    activations: int
    heard: int
    sites: int
    classes: int
    copies: float
    inputs: int
    shard: int
    seen: int
    source: int

    def _computed(self, device: str) -> int:
        logits = 4 * self.classes * min(self.sites, part_sites(device, self.classes)) if self.classes else 0
        return self.activations + int(self.copies * logits)

    def on_cpu(self, at_once: int) -> tuple[int, int, int, int]:
        """Return weights, activations, shards and source of a worker that does all on the host."""
        shards = at_once * COPIES_OF_A_SHARD * self.shard + self.seen
        return self.weights, self._computed("cpu"), shards, self.source

    def beside_gpu(self, at_once: int) -> tuple[int, int, int, int]:
        """Return those on the host of a worker with a GPU: weights as they are read, and shards before and after."""
        return self.weights, 0, at_once * COPIES_OF_A_SHARD * self.shard, self.source

    def on_gpu(self) -> tuple[int, int, int, int]:
        """Return those of its GPU: shards that wait for their turn, and what was heard and waits to be encoded."""
        activations = self._computed("cuda") + AHEAD * self.heard
        return self.weights, activations, TURNS_AHEAD * self.inputs + self.seen, 0


def _sizes(stage: Stage, build: PreparedBuild) -> _Sizes:
    """Return what a stage takes."""
    dataset = stage.dataset
    # The largest shard: segments of a dataset that grew may be cut otherwise.
    largest = max(shard.stop - shard.start for shard in dataset.rows.shards())
    rows, labelled = _most_rows(dataset, largest)
    input_bytes = math.prod(_shown_shape(stage)) * np.dtype(dataset.spec.input_dtype).itemsize
    row_bytes = 0 if dataset.spec.encoded and stage.teacher is None else input_bytes
    weights = activations = heard = sites = classes = 0
    copies = 0.0
    if stage.teacher is not None:
        blank = np.zeros((min(rows, stage.teacher.batch_size), *dataset.spec.input_shape), dataset.spec.input_dtype)
        try:
            weights, activations, heard, feature_bytes = _run_once(stage.teacher, dataset.spec, blank, "meta")
        except BadTeacher:  # its code looks at values, which a meta tensor has none of: run a batch for real
            weights, activations, heard, feature_bytes = _run_once(stage.teacher, dataset.spec, blank, "cpu")
        of_row = math.prod(task_of(dataset.spec).sites(dataset.spec.input_shape))
        stored = labelled if stage.spec is not None and stage.spec.labelled_positions else 1.0
        classes = dataset.spec.num_classes if stage.spec is None else stage.spec.num_classes
        row_bytes += math.ceil(stored * of_row * stage.teacher.encoding.bytes_per_row(classes))
        row_bytes += feature_bytes
        sites = len(blank) * of_row
        copies = _copies(stage.teacher.encoding, classes)
    source = dataset.source.buffer_bytes() if stage.teacher is None else 0
    seen = COPIES_OF_A_VIEW * rows * input_bytes if stage.view != PLAIN else 0  # beside the rows as they are stored
    shard = rows * row_bytes
    if dataset.spec.encoded:
        shard += most_kept_bytes(dataset.source, dataset.spec, dataset.rows)
        source += ROOM_BYTES * (1 if stage.teacher is None else build.request.threads)
    if dataset.spec.encoded and stage.teacher is not None:
        source += proven_bytes(shard.stop - shard.start for shard in dataset.rows.shards())
    return _Sizes(weights, activations, heard, sites, classes, copies, rows * input_bytes, shard, seen, source)


def _shown_shape(stage: Stage) -> Sequence[int]:
    """Return the shape of a row as a teacher is shown it: of pictures that are decoded for it, at its own size."""
    spec = stage.dataset.spec
    own = None if stage.spec is None else own_size(spec, stage.spec)
    if own is None:
        return spec.input_shape
    return (spec.input_shape[0], *([own.size] * 2 if isinstance(own.size, int) else own.size))


def _copies(encoding: Encoding, num_classes: int) -> float:
    """Return how many times logits are held while they are encoded and told of, themselves among them."""
    import torch

    if not encoding.soft or not num_classes:
        return 0.0
    # no two alike, as a teacher's are: of equal ones more are kept until it is known which
    logits_BC = torch.arange(float(TRIED_SITES * num_classes)).view(TRIED_SITES, num_classes).sin()
    asked = {"labels_B": torch.zeros(TRIED_SITES, dtype=torch.int64), "keys_B": torch.arange(TRIED_SITES)}
    with torch.inference_mode(), live_bytes() as live:
        encoding.encode_and_tell(logits_BC, num_classes=num_classes, **asked)
    return 1 + float(live.peak / (logits_BC.numel() * logits_BC.element_size()))


def _most_rows(dataset: PreparedDataset, measure: int) -> tuple[int, float]:
    """Return rows that a stretch of the plan has at most, each as long as one may be, and the share that has labels.

    Of a dataset in ranges both are a guess: of its text, where that can be looked at, within SPREAD.
    """
    rows = dataset.guess_rows(measure)
    if not dataset.spec.byte_ranges:
        return rows, 1.0
    density = dataset.source.density()
    longest = dataset.spec.input_shape[0]
    if density is not None:
        sites = min(SPREAD * density.sites * measure, max(1.0, density.sites) * measure)
        labelled = min(SPREAD * density.labelled * measure, sites)
        return math.ceil(sites / longest) + 1, labelled / sites
    rows *= MORE_ROWS
    # no more than all of its bytes are, if each is a token
    return (min(rows, -(-measure // longest)) if dataset.spec.own_length else rows), 1.0


def _run_once(
    options: TeacherOptions, dataset: DatasetSpec, blank: np.ndarray, device: str
) -> tuple[int, int, int, int]:
    """Return bytes of a teacher's weights, a batch's activations alive at once, what waits of it, a row's features."""
    import torch

    from teacher_cache.teachers.loading import load_teacher
    from teacher_cache.teachers.runtime import Runtime

    # An upper bound, and meta has no autocast. Layers on several devices are bounded as if all were on one, for a
    # worker reads them all before it spreads them.
    full_precision = options.model_copy(update={"autocast": "fp32", "device_map": None})
    before = _resident_bytes()
    teacher = load_teacher(full_precision, torch.device("cpu"))
    weights = sum(t.numel() * t.element_size() for t in teacher.model.state_dict().values())
    if isinstance(teacher.model, Runtime):  # another library has its weights, and what it computes
        weights = max(teacher.model.weights_bytes, _resident_bytes() - before)
    teacher.find_parts(torch.from_numpy(blank), dataset)  # as long as there are values to see it by
    teacher.to(torch.device(device))
    before = _resident_bytes()
    with live_bytes() as live:
        heard = teacher.hear(torch.from_numpy(blank).to(device), None, dataset)
    peak = int(WORKSPACE * live.peak) if live.reorders else live.peak
    if isinstance(teacher.model, Runtime):  # it keeps what it took for a batch
        peak = max(peak, _resident_bytes() - before)
    encoded = [options.features[name].encode(values) for name, values in heard.features.items()]
    features = sum(values.numel() * values.element_size() for values in encoded) // len(blank)
    return weights, peak, heard.hidden.numel() * 4, features


@contextlib.contextmanager
def live_bytes() -> Iterator[Any]:
    """Yield what counts the bytes of tensors alive within the block; `peak` is the most at one time.

    Attention that a processor fuses, and that on the meta device would hold the scores of all pairs, is counted as it
    is computed there. `reorders` says whether there was a convolution.
    """
    with _counter() as live, _fused_attention(live):
        yield live


def _fused_attention(live: Any) -> Any:
    """Return a context in which attention on the meta device takes the way that PyTorch would choose on a CPU."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attention
    from torch.overrides import TorchFunctionMode

    def is_fused(query: Any, key: Any, value: Any, attn_mask: Any = None, *positional: Any, **named: Any) -> bool:
        live.counts = False
        there = [torch.empty_like(each, device="cpu") for each in (query, key, value)]
        mask = None if attn_mask is None else torch.empty_like(attn_mask, device="cpu")
        live.counts = True
        choice: Any = torch._fused_sdp_choice  # noqa: SLF001 - no other name for it
        asked = dict(zip(("dropout_p", "is_causal"), positional, strict=False)) | named
        # nothing was written to them, so that hardly a page of them was taken
        return int(choice(*there, attn_mask=mask, **asked)) == FUSED

    def fused(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if enable_gqa:  # heads that are shared are written out
            key, value = (each.repeat_interleave(query.size(-3) // each.size(-3), -3) for each in (key, value))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(attn_mask, 0)
        call = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - what is chosen then
        return call(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]

    class Fused(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is attention and args[0].device.type == "meta" and is_fused(*args, **kwargs):
                return fused(*args, **kwargs)
            return func(*args, **kwargs)

    return Fused()


def _counter() -> Any:
    """Return a context that counts the bytes of tensors alive within it."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class LiveBytes(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.peak = self._live = 0
            self.reorders, self.counts = False, True
            self._seen: set[int] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            self.reorders |= "convolution" in str(func)
            for tensor in tree_leaves(out) if self.counts else ():
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
