"""A teacher's stage on one GPU against a bare loop of the same forward passes, on inputs that lie there; and a profile.

Everything that a stage does beside is in it: reading and checking shards, sending them, encoding, fetching,
compressing, writing, committing. The teacher is loaded before, once, as it is for all shards of a real build.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from jobs.cluster.builds import find_pools, open_runner
from jobs.files.cluster_options import BuildClusterOptions
from storage.datasets import AnySource
from teacher_cache.building.build import run_build
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.building.runners import Runner
from teacher_cache.building.survey import prepare_build
from teacher_cache.teachers.options import TeacherOptions
from tests.benchmarks.building import StageClock
from tests.benchmarks.pairs import NO_CUDA, Figure, Skipped, pairs
from tests.benchmarks.teachers import bottleneck_resnet, language_model

if TYPE_CHECKING:
    from torch import Tensor

RUNS = 3
REACH = 0.9
PROFILED_OPERATIONS = 20
K64 = {"kind": "sparse", "k": 64}


@dataclass(frozen=True)
class Stage:
    """A dataset, written as files, and a teacher of it.

    Attributes:
        what: for the table.
        dataset, teacher: sections of the job.
    """

    what: str
    dataset: dict[str, Any]
    teacher: dict[str, Any]


def images(folder: Path, *, rows: int, size: int, depths: tuple[int, ...], autocast: str, **teacher: Any) -> Stage:
    """Write noise as images; return them with a ResNet of bottlenecks, (3, 4, 6, 3) of which are a ResNet-50."""
    import numpy as np

    path = folder / f"images-{size}.npz"
    if not path.exists():
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 256, (rows, 3, size, size), dtype=np.uint8)
        np.savez(path, inputs=pixels, labels=draw.integers(0, 1000, rows))
    dataset = {"name": "images", "kind": "arrays", "path": str(path), "classes": [f"c{i}" for i in range(1000)]}
    options = {"name": "resnet", "autocast": autocast, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return Stage(
        f"a ResNet of bottlenecks, {size}², {autocast}",
        dataset | {"rows_per_shard": 512},
        options | bottleneck_resnet(folder, list(depths)) | teacher,
    )


def texts(folder: Path, *, rows: int, ids: int, block: int, autocast: str, **model: int) -> Stage:
    """Write noise as tokens; return them with a `gpt`, whose 64 largest classes and the rest are stored."""
    import numpy as np

    path = folder / f"tokens-{ids}.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).integers(0, ids, (rows, block), dtype=np.int32))
    dataset = {"name": "tokens", "kind": "tokens", "path": str(path), "vocabulary": ids, "rows_per_shard": 64}
    options = {"name": "gpt", "autocast": autocast, "encoding": K64, "batch_size": 16}
    return Stage(
        f"gpt over {ids:,} ids, k = 64, {autocast}", dataset, options | language_model(folder, ids, block, **model)
    )


def stages(folder: Path) -> Iterator[Stage]:
    """Yield what is measured on a GPU."""
    for autocast in ("fp32", "bf16"):
        yield images(folder, rows=16_384, size=224, depths=(3, 4, 6, 3), autocast=autocast)
    for autocast in ("fp32", "bf16"):
        yield texts(folder, rows=1024, ids=32_768, block=1024, autocast=autocast, depth=12, width=768, heads=12)


def measure(folder: Path) -> Iterator[Figure | Skipped]:
    """Yield the ratio of rates of each stage."""
    import torch

    if not torch.cuda.is_available():
        yield Skipped("teacher stage / bare loop, one GPU", NO_CUDA)
        return
    for stage in stages(folder):
        yield ratio(folder, stage, "cuda")


def ratio(folder: Path, stage: Stage, device: str) -> Figure:
    """Return the rate of a stage over that of a bare loop."""
    options = BuildClusterOptions(workers=1)
    pools = find_pools(options, device)
    with open_runner(options, pools) as runner:
        _build(folder, stage, runner, device, pools.teacher.threads, asked=False)
        bare = _bare(folder, stage, device, pools.teacher.threads)
        taken = pairs(lambda: _build(folder, stage, runner, device, pools.teacher.threads), bare, RUNS)
    return Figure(stage.what, [b / a for a, b in taken], REACH, "at least")


def profile(folder: Path) -> Iterator[str | Skipped]:
    """Yield what a GPU does while two shards are asked about in this process, the longest first."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    from teacher_cache.building.runners import run_inline

    if not torch.cuda.is_available():
        yield Skipped("profile of a teacher's stage", NO_CUDA)
        return
    for stage in stages(folder):
        _build(folder, stage, run_inline, "cuda", 8, asked=False)
        _build(folder, stage, run_inline, "cuda", 8)  # loads the teacher, and compiles kernels
        with profiled(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            seconds = _build(folder, stage, run_inline, "cuda", 8)
        events = found.key_averages()
        busy = sum(event.self_device_time_total for event in events) / 1e6
        yield f"{stage.what}: {seconds:.2f} s, kernels and copies {busy:.2f} s (those of two streams count twice)"
        yield events.table(sort_by="self_device_time_total", row_limit=PROFILED_OPERATIONS)


def _build(folder: Path, stage: Stage, runner: Runner, device: str, threads: int, *, asked: bool = True) -> float:
    """Build a stage anew; return the seconds of asking, from its first shard to its last."""
    cache, teacher = folder / "cache", TeacherOptions.model_validate(stage.teacher)
    source: Any = TypeAdapter(AnySource).validate_python(stage.dataset)
    shutil.rmtree(cache / source.name / teacher.name, ignore_errors=True)
    clock, teachers = _Clock(), (teacher,) * asked
    request = BuildRequest(str(cache), "benchmark", (source,), teachers, threads=threads, device=device)
    assert run_build(prepare_build(request), runner, clock).exit_code == 0
    return clock.seconds


class _Clock(StageClock):
    """As of other benchmarks; what noise teaches is at chance, and told to be."""

    def note(self, text: str) -> None:
        pass


def _bare(folder: Path, stage: Stage, device: str, threads: int) -> Callable[[], float]:
    """Return what measures the bare forward passes over all rows, whose inputs lie on the device."""
    import torch

    from storage.cache import Cache
    from teacher_cache.teachers.loading import load_teacher

    options, cache = TeacherOptions.model_validate(stage.teacher), Cache.open(str(folder / "cache"))
    dataset = cache.dataset(stage.dataset["name"])
    torch.set_num_threads(threads)
    model = load_teacher(options, torch.device(device)).model
    shards = [shard.shard for shard in cache.catalogue().shards(dataset.name)]
    # the first shard's rows again and again: as floats, all rows might not fit
    rows_S = torch.from_numpy(cache.read_inputs(dataset.name, shards[0])).to(device)
    batches = [_as_shown(rows_B, options) for rows_B in rows_S.split(options.batch_size)]
    half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.autocast]

    def seconds() -> float:
        _settle(device)
        began = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device, half, enabled=half is not None):
            for _ in shards:
                for inputs_B in batches:
                    model(inputs_B)
        _settle(device)
        return time.perf_counter() - began

    return seconds


def _as_shown(rows_B: Tensor, options: TeacherOptions) -> Tensor:
    """Return what a model is called with."""
    from storage.inputs.arguments import plain

    inputs_B = plain(rows_B)
    if options.mean is None or options.std is None:
        return inputs_B
    mean, std = (inputs_B.new_tensor(values).view(-1, 1, 1) for values in (options.mean, options.std))
    return (inputs_B - mean) / std


def _settle(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
