"""Where work runs. The only file that opens a Dask client."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jobs.cluster.attendance import Attendance
from jobs.cluster.batch.allocation import allocated
from jobs.cluster.batch.submitting import submitted
from jobs.cluster.heaps import VARIABLES_BEGIN
from jobs.files.cluster_options import ClusterOptions
from storage.errors import BadRequest, TryAgain

if TYPE_CHECKING:
    from distributed import Client, Security, WorkerPlugin

CONNECT_TIMEOUT_S = 30
STARTS = 3  # of a local cluster whose workers die before they have told of themselves
WORKER_TTL = "60s"  # without a sign of life, for which a worker needs no more than a moment; looked at as often


@contextlib.contextmanager
def open_client(
    options: ClusterOptions,
    *,
    environments: Sequence[Mapping[str, str]] = (),
    at_once: int = 1,
    ignored: Sequence[signal.Signals] = (signal.SIGINT,),
    attendance: Attendance | None = None,
) -> Iterator[Client]:
    """Yield a client of the cluster; one of our own ends with the block.

    Args:
        options: which cluster; not `inline`.
        environments: of one of our own: variables of each worker process, those of the C library of the first for all;
            of jobs, of the first for all.
        at_once: of one of our own: how much work a worker does at a time.
        ignored: signals that workers of our own outlive: a terminal sends Ctrl-C to all, and the command ends them.
        attendance: looks after the workers; of a batch scheduler it is told of the jobs.

    Raises:
        BadRequest: the address is none, workers of our own cannot write files of theirs, or jobs cannot be submitted.
        TryAgain: the scheduler cannot be reached, or workers of our own died as they started, each time.
    """
    import dask
    from distributed import Client

    for name in ["distributed", *logging.root.manager.loggerDict]:  # each child has a level of its own
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)  # its worker losses are ours to report
    memory = {f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause")}
    ours = {
        **memory,
        "distributed.scheduler.allowed-failures": 1,
        "distributed.scheduler.worker-ttl": WORKER_TTL,
        # Nobody looks at it, and a worker keeps an hour of it: 60 kB more each second.
        "distributed.worker.profile.enabled": False,
        "distributed.nanny.pre-spawn-environ": _before_spawning(environments),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(ours))
        attendance = attendance or Attendance()
        if options.kind == "local":
            attendance.ours = True
            cluster = stack.enter_context(_local_cluster(environments, at_once))
            client = stack.enter_context(Client(cluster))
            with contextlib.suppress(OSError):  # of a worker that dies just now; the one in its place is told
                client.register_plugin(_ignore(ignored))
        elif options.of_batch:
            environment, opened = environments[0] if environments else {}, allocated if options.inside else submitted
            client = stack.enter_context(opened(options, environment, at_once, attendance))
        else:
            client = stack.enter_context(_client_of(options, attendance.note))
        yield client


def _before_spawning(environments: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the variables of workers of our own that count as their processes start: Dask's, and the C library's."""
    import dask

    of_dask = dask.config.get("distributed.nanny.pre-spawn-environ")
    of_heaps = {name: value for name, value in (environments or [{}])[0].items() if name.startswith(VARIABLES_BEGIN)}
    # one thread of each library; but what a worker's memory is like, is ours to say
    return {name: value for name, value in of_dask.items() if not name.startswith(VARIABLES_BEGIN)} | of_heaps


def _client_of(options: ClusterOptions, note: Callable[[str], None]) -> Client:
    """Return a client of a scheduler that runs already. Raises BadRequest and TryAgain, as `open_client`."""
    from distributed import Client

    assert options.address is not None
    security = _security(options)
    if not options.address.startswith("tls://") and (public := _public_address(options.address)) is not None:
        note(
            f"warning: {options.address} is a public address ({public}), and whoever reaches a scheduler without TLS "
            "runs what they like on its workers; start it with --tls-ca-file, --tls-cert and --tls-key, and name such "
            "files in [cluster]"
        )
    try:
        return Client(options.address, timeout=CONNECT_TIMEOUT_S, security=security)
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


def _security(options: ClusterOptions) -> Security | None:
    """Return the certificates of a job; None leaves them to Dask's own settings. Raises BadRequest."""
    from distributed import Security

    files = {name: getattr(options, name) for name in ("tls_ca_file", "tls_cert", "tls_key")}
    if options.tls_ca_file is None:
        return None
    for name, path in files.items():
        try:
            path.open("rb").close()
        except OSError as error:
            raise BadRequest(
                f"{name} of [cluster] cannot be read",
                found=f"{path}: {error.strerror}",
                do="mend the path, or its rights",
            ) from None
    ca, cert, key = map(str, files.values())
    return Security(require_encryption=True, tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key)


def _public_address(address: str) -> str | None:
    """Return the address on the internet that a scheduler has; None if it has none, or none is found."""
    host = urlsplit(address).hostname
    try:
        found = [str(each[4][0]) for each in socket.getaddrinfo(host, None)]
    except (OSError, UnicodeError):
        return None  # connecting tells what is wrong with it
    return next((text for text in found if ipaddress.ip_address(text.partition("%")[0]).is_global), None)


def _local_cluster(environments: Sequence[Mapping[str, str]], at_once: int) -> Any:
    """Return a scheduler in this process, and worker processes each with an environment of its own.

    Raises:
        BadRequest: the workers cannot write files of their own.
        TryAgain: one of them died as it started, each time.
    """
    from distributed import Nanny, Scheduler, SpecCluster  # LocalCluster gives all workers the same environment

    here = {"host": "127.0.0.1", "protocol": "tcp://"}
    # Any free port for the dashboard: 8787 may be another command's.
    dashboard = {"dashboard": True, "dashboard_address": "127.0.0.1:0"}  # of this machine alone
    scheduler = {"cls": Scheduler, "options": {**here, **dashboard, "port": 0}}
    common = {**here, "nthreads": at_once, "memory_limit": 0, "dashboard": False, "silence_logs": logging.CRITICAL}
    workers = {
        number: {"cls": Nanny, "options": {**common, "env": dict(environment)}}
        for number, environment in enumerate(environments)
    }
    _check_scratch()
    for _ in range(STARTS):
        try:
            return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)
        except (RuntimeError, OSError) as error:  # Dask's own; once they run, a nanny replaces those that die
            cause = error.__cause__ or error
            if isinstance(cause, OSError) and _is_in_scratch(cause.filename):
                raise _no_scratch(cause) from None  # it had room for a look, and not for all of them
            found = str(cause)
    raise TryAgain(
        f"workers on this machine died as they started, {STARTS} times",
        found=found,
        do="look at this machine's free memory, and at who ends processes here; then run the same command again",
    )


def _check_scratch() -> None:
    """Raise BadRequest if the workers' own folder cannot be written; Dask would end with a traceback."""
    import dask

    try:
        folder = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise _no_scratch(error) from None


def _is_in_scratch(path: object) -> bool:
    """Return whether a path lies in the workers' own folder; that of another error, or none, says nothing of it."""
    folder = _scratch()
    return folder is not None and isinstance(path, str) and Path(folder).absolute() in Path(path).absolute().parents


def _scratch() -> str | None:
    """Return the workers' own folder; None where none can be written."""
    import dask

    folder: str | None = dask.config.get("temporary-directory", None)
    with contextlib.suppress(OSError):
        folder = folder or tempfile.gettempdir()
    return folder


def _no_scratch(error: OSError) -> BadRequest:
    """Return the error of workers that cannot write files of their own."""
    folder = _scratch()
    return BadRequest(
        f"Dask's workers cannot write files of their own into {folder or 'any temporary folder'}",
        found=error.strerror or str(error),
        expected="a folder that can be written, for files of a few kilobytes",
        do="name another: DASK_TEMPORARY_DIRECTORY=/path/of/a/folder, in the environment",
    )


def _ignore(signals: Sequence[signal.Signals]) -> WorkerPlugin:
    from distributed import Worker, WorkerPlugin

    class Ignore(WorkerPlugin):
        def setup(self, worker: Worker) -> None:
            for number in signals:
                signal.signal(number, signal.SIG_IGN)

    return Ignore()
