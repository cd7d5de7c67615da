"""What `[cluster]` may say: where a job runs, never what it computes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from jobs.files.pod_options import Amount, PodOptions
from storage.options import JobPath, Options, holds_secret

BATCH = ("slurm", "pbs", "lsf", "sge")
Kind = Literal["local", "address", "inline", "slurm", "pbs", "lsf", "sge", "kubernetes"]


def _seconds(text: object) -> object:
    """Return a time limit in seconds. "90" would be minutes to one scheduler and seconds to another."""
    if not isinstance(text, str):
        return text  # pydantic says what is wrong with it
    if (found := re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text)) is None:
        raise ValueError(f"{text!r} is no time limit; write hours:minutes:seconds, or days-hours:minutes:seconds")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


TimeLimit = Annotated[int, Field(gt=0), BeforeValidator(_seconds)]
Line = Annotated[str, Field(min_length=1, pattern=r"^[^\r\n]+$")]


class BatchOptions(Options):
    """What `[cluster]` may say of jobs of a batch scheduler, each of which is one worker.

    Attributes:
        queue: in which jobs wait; SLURM calls it a partition.
        account: whose hours they are.
        time: limit of a job, `hours:minutes:seconds` or `days-hours:minutes:seconds`; kept in seconds.
        memory: of a job, such as `16 GiB`.
        processors: of a job; by default 1.
        gpus: of a job: 0 or 1, for a worker has one device.
        directives: more of the scheduler's own options, as they stand behind `#SBATCH`; of `inside`, of `srun`.
        setup: lines of shell before a worker starts.
        logs: folder of what jobs print, seen by all nodes; by default where the command runs.
        interface: network interface on which the command and its workers hear each other, such as `ib0`.
        pending_limit_s: seconds for which there may be no worker since all jobs wait in the queue.
        inside: this command runs in a job already, and its workers are the tasks of that one.
    """

    queue: Line | None = None
    account: Line | None = None
    time: TimeLimit | None = None
    memory: Amount | None = None
    processors: Annotated[int, Field(ge=1)] | None = None
    gpus: Annotated[int, Field(ge=0, le=1)] | None = None
    directives: list[Line] = Field(default=[])
    setup: list[Line] = Field(default=[])
    logs: JobPath | None = None
    interface: Line | None = None
    pending_limit_s: Annotated[FiniteFloat, Field(gt=0)] | None = None
    inside: bool = False


_OF_A_JOB = ("queue", "account", "time", "memory", "processors", "setup", "logs", "pending_limit_s")
_NEEDED = ("workers", "time", "memory")
_OF_A_POD = ("memory", "processors", "gpus")
_LIMITS = {"slurm": r"(-t|--time)\b", "pbs": r"-l.*\bwalltime=", "lsf": r"-W\b", "sge": r"-l.*\b[hs]_rt="}


class ClusterOptions(BatchOptions):
    """What every `[cluster]` may say. It decides how a job runs, never what it computes.

    Attributes:
        kind: `local` starts workers on this machine for the length of the command; `address` uses a running scheduler;
            `inline` runs in this process, without Dask; `slurm`, `pbs`, `lsf` and `sge` submit jobs, one a worker;
            `kubernetes` is one whose pods Dask's operator starts (jobs.kubernetes.manifest).
        workers: processes of a local cluster; by default one for each processor. Of a batch scheduler: jobs;
            of Kubernetes: pods.
        threads: of torch in each worker; by default what OMP_NUM_THREADS says, else the processors shared out among
            the workers.
        address: of the scheduler, `tcp://host:port`, or `tls://host:port` with the three files that follow.
        tls_ca_file: certificate that signed all others.
        tls_cert, tls_key: certificate of this command and its key.
        pods: of Kubernetes.
    """

    kind: Kind = "local"
    workers: Annotated[int, Field(ge=1)] | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    address: str | None = None
    tls_ca_file: JobPath | None = None
    tls_cert: JobPath | None = None
    tls_key: JobPath | None = None
    pods: PodOptions | None = None

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.kind == "address") != (self.address is not None):
            raise ValueError('`address` goes with kind = "address"')
        tls = [name for name in ("tls_ca_file", "tls_cert", "tls_key") if getattr(self, name) is not None]
        if tls and (self.kind != "address" or len(tls) < 3 or not str(self.address).startswith("tls://")):
            raise ValueError('`tls_ca_file`, `tls_cert` and `tls_key` go together, with address = "tls://host:port"')
        if self.workers is not None and (self.kind not in ("local", "kubernetes", *BATCH) or self.inside):
            raise ValueError('`workers` goes with kind = "local", or with jobs that the command submits')
        if (self.kind == "kubernetes") != (self.pods is not None):
            raise ValueError('[cluster.pods] goes with kind = "kubernetes"')
        if self.kind in BATCH:
            self._check_batch()
        else:
            self._check_others()
        return self

    def _check_others(self) -> None:
        of_pods = self.kind == "kubernetes"
        if of_pods and (lacking := [name for name in ("workers", "memory") if getattr(self, name) is None]):
            raise ValueError(f"kind = {self.kind!r} needs {', '.join(f'`{name}`' for name in lacking)} of its pods")
        strange = [name for name in BatchOptions.model_fields if not (of_pods and name in _OF_A_POD)]
        if said := self._said(strange):
            raise ValueError(f"`{said[0]}` goes with a batch scheduler: kind = {' or '.join(map(repr, BATCH))}")

    def _check_batch(self) -> None:
        if self.inside and self.kind != "slurm":
            raise ValueError('`inside` goes with kind = "slurm", whose `srun` starts the workers')
        if self.inside and (said := self._said(_OF_A_JOB)):
            raise ValueError(f"`{said[0]}` is decided by the job that this command runs in (inside = true)")
        if not self.inside and (lacking := [name for name in _NEEDED if getattr(self, name) is None]):
            raise ValueError(f"kind = {self.kind!r} needs {', '.join(f'`{name}`' for name in lacking)} of its jobs")
        if strange := [line for line in self.directives if not line.startswith("-")]:
            raise ValueError(
                f"{strange[0]!r} in `directives` is no option; write what stands behind #SBATCH: --qos=high"
            )
        if limits := [line for line in self.directives if re.match(_LIMITS[self.kind], line)]:
            raise ValueError(f"{limits[0]!r} in `directives` is the time limit, which must be known; say it in `time`")
        if held := _secrets([*self.setup, *self.directives]):
            raise ValueError(
                f"`{held[0]}` in `setup` or `directives` looks like a secret, and a script is kept and shown; "
                "say where it lies: a file, or $NAME of the environment"
            )
        if self.kind == "sge" and (said := [name for name in ("processors", "gpus") if getattr(self, name)]):
            raise ValueError(f"`{said[0]}` has a name of each site's own in SGE; say it in `directives`: -pe smp 8")

    def _said(self, names: Iterable[str]) -> list[str]:
        """Return which of some options have another value than by default; a job that has travelled names them all."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]

    @property
    def elsewhere(self) -> bool:
        """Whether workers are on machines of which this process knows nothing."""
        return self.kind == "address" or self.of_batch

    @property
    def of_batch(self) -> bool:
        """Whether workers run in jobs of a batch scheduler."""
        return self.kind in BATCH

    @property
    def submits(self) -> bool:
        """Whether the command submits those jobs, which are then as many and as large as it says."""
        return self.of_batch and not self.inside

    @property
    def num_workers(self) -> int:
        """Worker processes of this cluster; 1 where it is not ours to say."""
        if self.kind == "local":
            return self.workers or num_processors()
        return self.workers or 1

    @property
    def num_threads(self) -> int:
        """Threads of torch in each worker."""
        if self.of_batch:
            of_task = os.environ.get("SLURM_CPUS_PER_TASK", "1") if self.inside else "1"
            return self.threads or self.processors or int(of_task)
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
            raise ValueError('`shard_limit_s` goes with workers that can be replaced: kind = "local", say')
        return self


class StudentClusterOptions(ClusterOptions):
    """The `[cluster]` of a student job, whose groups of students are work for Dask, one device each.

    Attributes:
        kind: as of a cache job, but by default this process, with one device.
        workers: processes of a local cluster; by default one for each CUDA device, or processor where there is none.
        threads: of torch in each worker, or in this process; by default as many processors as fall to it.
    """

    kind: Kind = "inline"


def _secrets(lines: Iterable[str]) -> list[str]:
    """Return the names of variables that lines of a script give a secret; where one lies is none.

    >>> _secrets(["export HF_TOKEN='hf_abc' A=1", "export HF_TOKEN=$(cat token)", "KEY=/etc/key"])
    ['HF_TOKEN']
    """
    given = [found for line in lines for found in re.findall(r"""\b([A-Za-z_]\w*)=["']?([^\s"',]+)""", line)]
    return [name for name, value in given if value[0] not in "$/~`" and holds_secret(name, value)]


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
