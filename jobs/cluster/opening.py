"""Where work runs. The only file that opens a Dask client."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.files.cluster_options import ClusterOptions
from storage.errors import BadRequest, TryAgain

if TYPE_CHECKING:
    from distributed import Client, WorkerPlugin

CONNECT_TIMEOUT_S = 30


@contextlib.contextmanager
def open_client(
    options: ClusterOptions,
    *,
    environments: Sequence[Mapping[str, str]] = (),
    pieces_each: int = 1,
    ignored: Sequence[signal.Signals] = (signal.SIGINT,),
) -> Iterator[Client]:
    """Yield a client of the cluster; one of our own ends with the block.

    Args:
        options: which cluster; not `inline`.
        environments: of a local one: variables of each worker process.
        pieces_each: of a local one: how many pieces of work a worker runs at a time.
        ignored: signals that workers of our own outlive: a terminal sends Ctrl-C to all, and the command ends them.

    Raises:
        BadRequest: the address is none.
        TryAgain: the scheduler cannot be reached.
    """
    import dask
    from distributed import Client

    for name in ["distributed", *logging.root.manager.loggerDict]:  # each child has a level of its own
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)  # its worker losses are ours to report
    memory = {f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause")}
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({**memory, "distributed.scheduler.allowed-failures": 1}))
        if options.kind == "local":
            cluster = stack.enter_context(_local_cluster(environments, pieces_each))
            client = stack.enter_context(Client(cluster))
            client.register_plugin(_ignore(ignored))
        else:
            try:
                client = stack.enter_context(Client(options.address, timeout=CONNECT_TIMEOUT_S))
            except OSError as error:
                raise TryAgain(
                    f"no Dask scheduler answers at {options.address}", found=str(error), do="start it: dask scheduler"
                ) from None
            except (ValueError, TypeError) as error:  # of an address; or of TLS without certificates
                raise BadRequest(
                    f"{options.address!r} is no address of a Dask scheduler that can be used",
                    found=str(error),
                    expected='address = "tcp://host:port"',
                ) from None
        yield client


def _local_cluster(environments: Sequence[Mapping[str, str]], pieces_each: int) -> Any:
    """Return a scheduler in this process, and worker processes each with an environment of its own."""
    from distributed import Nanny, Scheduler, SpecCluster  # LocalCluster gives all workers the same environment

    here = {"host": "127.0.0.1", "protocol": "tcp://"}
    # Any free port for the dashboard: 8787 may be another command's.
    dashboard = {"dashboard": True, "dashboard_address": "127.0.0.1:0"}  # of this machine alone
    scheduler = {"cls": Scheduler, "options": {**here, **dashboard, "port": 0}}
    common = {**here, "nthreads": pieces_each, "memory_limit": 0, "dashboard": False, "silence_logs": logging.CRITICAL}
    workers = {
        number: {"cls": Nanny, "options": {**common, "env": dict(environment)}}
        for number, environment in enumerate(environments)
    }
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


def _ignore(signals: Sequence[signal.Signals]) -> WorkerPlugin:
    from distributed import Worker, WorkerPlugin

    class Ignore(WorkerPlugin):
        def setup(self, worker: Worker) -> None:
            for number in signals:
                signal.signal(number, signal.SIG_IGN)

    return Ignore()
