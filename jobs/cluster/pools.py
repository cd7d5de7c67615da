"""Which workers a build has on this machine: one a processor where samples are decoded, one a GPU for a teacher."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from jobs.cluster.heaps import HEAPS, ONE, VARIABLE
from jobs.files.cluster_options import BuildClusterOptions

AT_ONCE = 2  # shards of a worker: one computes while the other reads or writes (teacher_cache.work.pieces.LOCK)
# Of one with a GPU: one is asked about, one lies on the GPU, one is read, the others are compressed and written.
AT_ONCE_GPU = (4, 8)  # at least, at most; in between, every second processor has one


class Pool(NamedTuple):
    """Workers that are alike but for their devices.

    Attributes:
        devices: of each worker, as `CUDA_VISIBLE_DEVICES` names it; None: whatever there is.
        at_once: shards that each of them has at a time.
        threads: of torch in each of them.
    """

    devices: tuple[str | None, ...]
    at_once: int
    threads: int

    @property
    def environments(self) -> list[dict[str, str]]:
        """The variables of each worker."""
        own = {VARIABLE: str(HEAPS if self.has_gpus else ONE)}  # by default each thread keeps what it has freed
        return [own if device is None else {"CUDA_VISIBLE_DEVICES": device} | own for device in self.devices]

    @property
    def has_gpus(self) -> bool:
        """Whether each worker has a GPU of its own."""
        return self.devices[0] is not None


class Pools(NamedTuple):
    """Who ingests, and who asks teachers or encodes anew; the same ones where there is no GPU."""

    ingest: Pool
    teacher: Pool


def lay_out(options: BuildClusterOptions, gpus: Sequence[str], processors: int, threads: int | None = None) -> Pools:
    """Return the workers of a build; of one in this process, what that does at a time.

    Args:
        options: of the job; of `address`, the workers are not ours to say, and jobs are as large as it says.
        gpus: that may be used, as `CUDA_VISIBLE_DEVICES` names them.
        processors: likewise.
        threads: of torch in each worker, where the job says none; None: the processors shared out.

    Sixteen processors with two GPUs, then without:

        >>> ingest, teacher = lay_out(BuildClusterOptions(), ["0", "1"], 16)
        >>> len(ingest.devices), ingest.threads, teacher
        (16, 1, Pool(devices=('0', '1'), at_once=4, threads=8))
        >>> ingest, teacher = lay_out(BuildClusterOptions(workers=4), [], 16)
        >>> ingest == teacher, len(teacher.devices), teacher.at_once, teacher.threads
        (True, 4, 2, 4)
    """
    if options.of_batch:  # the same jobs for all stages: each has waited in a queue
        at_once = AT_ONCE_GPU[0] if options.gpus else AT_ONCE
        both = Pool((None,) * options.num_workers, at_once, options.num_threads)
        return Pools(both, both)
    threads = options.threads or threads
    workers = options.workers or (processors if options.kind == "local" else 1)
    ingest = Pool((None,) * workers, AT_ONCE, threads or max(1, processors // workers))
    if not gpus or options.elsewhere:
        return Pools(ingest, ingest)
    devices = tuple(gpus[:workers])  # of this process, where that does the work: the first
    each = max(1, processors // len(devices))
    least, most = AT_ONCE_GPU
    return Pools(ingest, Pool(devices, min(most, max(least, each // 2)), threads or each))


def visible_gpus(device: str) -> list[str]:
    """Return the GPUs of this machine that may be used, as `CUDA_VISIBLE_DEVICES` names them; none for "cpu"."""
    if device == "cpu":
        return []
    import torch

    count, visible = (
        torch.cuda.device_count() if torch.cuda.is_available() else 0,
        os.environ.get("CUDA_VISIBLE_DEVICES"),
    )
    names = [name.strip() for name in visible.split(",")] if visible else [str(number) for number in range(count)]
    return names[:count]
