"""The feed alone, against `index_select` on tensors in memory: CIFAR-10 with its ten soft targets, batches of 256.

On one thread, since on a busy machine several of them wait for one another. Kept rows are timed by the clock of the
process, whatever else runs on the machine; streamed ones by the wall's, for their readers are threads beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cluster.builds import open_runner
from jobs.files.cluster_options import BuildClusterOptions
from tests.benchmarks.building import build
from tests.benchmarks.data import TRAIN, require
from tests.benchmarks.pairs import Figure, pairs
from tests.benchmarks.teachers import linear

if TYPE_CHECKING:
    from torch import Tensor

    from student_train.feed.feed import Feed

Clock = Callable[[], float]
BATCH = 256
WINDOW_SHARDS = 4  # of 25
RUNS = 25


def measure(folder: Path) -> Iterator[Figure]:
    """Yield ratios of rates: of rows as they are stored, and with their pixels made float32 as a student wants them."""
    import torch

    from storage.cache import Cache
    from storage.encodings import Capability
    from student_train.feed.batches import Needs, SoftNeed
    from student_train.feed.residency import FeedPool
    from student_train.feed.selection import select_rows
    from student_train.feed.shard_source import ShardSource
    from student_train.feed.windows import load

    _build(folder)
    cache, cpu = Cache.open(str(folder / "cache")), torch.device("cpu")
    needs = Needs(labels=True, soft=frozenset({SoftNeed("linear", Capability("bucket", 1.0))}))
    selection = select_rows(cache.samples(), "cifar", needs)
    kept, streamed = (
        FeedPool(cache, cpu, place=place, window_shards=WINDOW_SHARDS).feed(selection, needs)
        for place in ("device", "stream")
    )
    source = ShardSource(cache, selection)
    arrays = load(source, source.names(needs), cpu)
    tensors = [arrays.pop("inputs"), *arrays.values(), torch.from_numpy(selection.labels_N)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for as_float in (False, True):
        what = ", pixels made float" if as_float else ""
        for name, feed, clock, reach in (
            ("kept", kept, time.process_time, 0.95),
            ("streamed", streamed, time.perf_counter, 0.12),
        ):
            ours, by_hand = _epochs(feed, clock, as_float=as_float), _gather(tensors, clock, as_float=as_float)
            rates = [b / a for a, b in pairs(ours, by_hand, RUNS)]
            yield Figure(f"{name} feed / index_select{what}", rates, reach, "at least")
    torch.set_num_threads(threads)


def _build(folder: Path) -> None:
    """Build a cache whose teacher costs nothing: only its targets' bytes matter."""
    from storage.encodings import SparseEncoding
    from teacher_cache.teachers.options import TeacherOptions

    teacher = TeacherOptions(name="linear", **linear(folder), encoding=SparseEncoding(k=10))
    with open_runner(BuildClusterOptions(kind="inline")) as runner:
        build(folder / "cache", require(TRAIN), runner, (teacher,))


def _epochs(feed: Feed, clock: Clock, *, as_float: bool) -> Callable[[], float]:
    """Return what measures the seconds of an epoch, each time the next one."""
    numbers = iter(range(10_000))

    def epoch() -> float:
        began = clock()
        for batch in feed.shuffled(BATCH, seed=0, epoch=next(numbers)):
            if as_float:
                len(batch.inputs)  # nothing holds on to them longer than to the batch
        return clock() - began

    return epoch


def _gather(tensors: list[Tensor], clock: Clock, *, as_float: bool) -> Callable[[], float]:
    """Return what measures the seconds of an epoch written by hand."""
    import torch

    from storage.inputs.arguments import to_float

    def epoch() -> float:
        began = clock()
        for rows_B in torch.randperm(len(tensors[0])).split(BATCH):
            batch = [values.index_select(0, rows_B) for values in tensors]
            if as_float:
                batch[0] = to_float(batch[0])
        return clock() - began

    return epoch
