"""What `[cluster]` may say: where a job runs, never what it computes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from storage.options import Options


class ClusterOptions(Options):
    """What every `[cluster]` may say. It decides how a job runs, never what it computes.

    Attributes:
        kind: `local` starts workers on this machine for the length of the command; `address` uses a running scheduler;
            `inline` runs in this process, without Dask.
        workers: processes of a local cluster; by default one for each processor.
        threads: of torch in each worker; by default what OMP_NUM_THREADS says, else the processors shared out among
            the workers.
        address: of the scheduler, `tcp://host:port`.
    """

    kind: Literal["local", "address", "inline"] = "local"
    workers: Annotated[int, Field(ge=1)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    address: str | None = None

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.kind == "address") != (self.address is not None):
            raise ValueError('`address` goes with kind = "address"')
        if self.workers is not None and self.kind != "local":
            raise ValueError('`workers` goes with kind = "local"')
        return self

    @property
    def num_workers(self) -> int:
        """Worker processes of this cluster; 1 where it is not ours to say."""
        return (self.workers or num_processors()) if self.kind == "local" else 1

    @property
    def num_threads(self) -> int:
        """Threads of torch in each worker."""
        return self.threads or threads_of_environment() or max(1, num_processors() // self.num_workers)


class BuildClusterOptions(ClusterOptions):
    """The `[cluster]` of a cache job, whose shards are work for Dask.

    Attributes:
        shard_limit_s: seconds that a shard may take on a worker, apart from those in which it waits for others of that
            worker; one that takes longer is replaced, and the shard tried again. None: as long as it takes.
    """

    shard_limit_s: Annotated[FiniteFloat, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _can_be_limited(self) -> Self:
        if self.shard_limit_s is not None and self.kind == "inline":
            raise ValueError('`shard_limit_s` goes with kind = "local" or "address": a worker can be replaced')
        return self


class StudentClusterOptions(ClusterOptions):
    """The `[cluster]` of a student job, whose groups of students are work for Dask, one device each.

    Attributes:
        kind: as of a cache job, but by default this process, with one device.
        workers: processes of a local cluster; by default one for each CUDA device, or processor where there is none.
        threads: of torch in each worker, or in this process; by default as many processors as fall to it.
    """

    kind: Literal["local", "address", "inline"] = "inline"


def threads_of_environment() -> int | None:
    """Return what OMP_NUM_THREADS says, of a list of nested levels the first; None: nothing that is a number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def num_processors() -> int:
    """Return the processors that this process may use, which a scheduler or the limit of a container may cut down."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, processor_limit() or there)


def processor_limit(own: Path = Path("/proc/self/cgroup"), groups: str = "/sys/fs/cgroup") -> int | None:
    """Return how many processors' time this process may use, rounded up; None: no limit of a control group (v2)."""
    try:
        group = own.read_text().rpartition("::")[2].strip()
        quota, period = Path(f"{groups}{group}/cpu.max").read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # another system, or "max"
        return None
