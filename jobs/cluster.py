"""Where tasks run. The only file that opens a Dask client."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from storage.errors import TryAgain
from storage.options import Options
from teacher_cache.runners import Runner, run_inline, run_on_dask

if TYPE_CHECKING:
    from distributed import WorkerPlugin

THREADS_PER_WORKER = 2  # one task computes while the other reads or writes (teacher_cache.tasks.LOCK)
CONNECT_TIMEOUT_S = 30


class ClusterOptions(Options):
    """The `[cluster]` of a job. It decides how a job runs, never what it computes.

    Attributes:
        kind: `local` starts workers on this machine for the length of the command; `address` uses a running scheduler;
            `inline` runs in this process, without Dask.
        workers: processes of a local cluster; by default one for each processor.
        threads: of torch in each worker; by default the processors shared out among the workers.
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
        return (self.workers or _processors()) if self.kind == "local" else 1

    @property
    def num_threads(self) -> int:
        """Threads of torch in each worker."""
        return self.threads or max(1, _processors() // self.num_workers)


def _processors() -> int:
    """Return the processors that this process may use, which a scheduler may have cut down."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def open_runner(options: ClusterOptions) -> Iterator[Runner]:
    """Yield what runs tasks; a cluster of our own ends with the block.

    Raises:
        TryAgain: the scheduler cannot be reached.
    """
    if options.kind == "inline":
        yield run_inline
        return
    import dask
    from distributed import Client, LocalCluster

    for name in ["distributed", *logging.root.manager.loggerDict]:  # each child has a level of its own
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)  # its worker losses are ours to report
    memory = {f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause")}
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({**memory, "distributed.scheduler.allowed-failures": 1}))
        if options.kind == "local":
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=options.num_workers,
                    threads_per_worker=THREADS_PER_WORKER,
                    memory_limit=0,
                    dashboard_address=":0",  # any free port: 8787 may be another build's
                    silence_logs=logging.CRITICAL,
                )
            )
            client = stack.enter_context(Client(cluster))
            client.register_plugin(_ignore_ctrl_c())
        else:
            try:
                client = stack.enter_context(Client(options.address, timeout=CONNECT_TIMEOUT_S))
            except OSError as error:
                raise TryAgain(
                    f"no Dask scheduler answers at {options.address}", found=str(error), do="start it: dask scheduler"
                ) from None
        yield run_on_dask(client)


def _ignore_ctrl_c() -> WorkerPlugin:
    """Return what makes workers of our own outlive Ctrl-C; a terminal sends it to all, and the command ends them."""
    import signal

    from distributed import Worker, WorkerPlugin

    class IgnoreCtrlC(WorkerPlugin):
        def setup(self, worker: Worker) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    return IgnoreCtrlC()
