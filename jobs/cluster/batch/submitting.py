"""Jobs of a batch scheduler, each of which is one worker: a fixed number of them, replaced when they end.

The scheduler of Dask runs in the command itself, on a login node or wherever it may submit, behind certificates of its
own: who can reach its port cannot use it.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.cluster.attendance import Attendance
from jobs.cluster.batch.leaving import ENDS, LIMIT
from jobs.cluster.batch.pending import QUEUES, Watched
from jobs.files.cluster_options import ClusterOptions
from storage.errors import BadRequest, missing_extra

if TYPE_CHECKING:
    from distributed import Client, Security

NAME = "stillroom"  # of the jobs
REPLACED_AFTER_S = 5  # without a worker of a job, whose nanny may start another one meanwhile
QUIET = {  # of workers, who do not hear of this process's settings
    "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}


class Batch(NamedTuple):
    """How dask-jobqueue speaks to one kind of scheduler.

    Attributes:
        cluster: its class there.
        submit: the command that submits.
        keywords: of that class, from what a job file says.
        directives: of every job.
    """

    cluster: str
    submit: str
    keywords: Callable[[ClusterOptions], dict[str, Any]]
    directives: tuple[str, ...] = ()


def _slurm(options: ClusterOptions) -> dict[str, Any]:
    return {
        "account": options.account,
        "walltime": clock(options.time, days="-"),
        "job_cpu": options.processors or 1,
        "job_mem": f"{_mebibytes(options)}M",
        "job_extra_directives": [f"--gres=gpu:{options.gpus}"] if options.gpus else [],
    }


def _pbs(options: ClusterOptions) -> dict[str, Any]:
    gpus = f":ngpus={options.gpus}" if options.gpus else ""
    spec = f"select=1:ncpus={options.processors or 1}:mem={_mebibytes(options)}mb{gpus}"
    return {"account": options.account, "walltime": clock(options.time), "resource_spec": spec}


def _lsf(options: ClusterOptions) -> dict[str, Any]:
    hours_minutes = clock((options.time or 0) + 59).rpartition(":")[0]  # it knows no seconds
    return {
        "project": options.account,
        "walltime": hours_minutes,
        "ncpus": options.processors or 1,
        "mem": _mebibytes(options) * 2**20,
        "job_extra_directives": [f'-gpu "num={options.gpus}"'] if options.gpus else [],
    }


def _sge(options: ClusterOptions) -> dict[str, Any]:
    spec = f"h_vmem={_mebibytes(options)}M"
    return {"project": options.account, "walltime": clock(options.time), "resource_spec": spec}


BATCHES = {
    # The command replaces a job itself; one that SLURM begins again would be one too many.
    "slurm": Batch("SLURMCluster", "sbatch", _slurm, ("--no-requeue",)),
    "pbs": Batch("PBSCluster", "qsub", _pbs, ("-r n",)),
    "lsf": Batch("LSFCluster", "bsub", _lsf, ("-rn",)),
    "sge": Batch("SGECluster", "qsub", _sge, ("-r n",)),
}


def clock(seconds: int | None, days: str = "") -> str:
    """Return a time limit as batch schedulers read it.

    >>> clock(5400), clock(200000), clock(200000, days="-")
    ('01:30:00', '55:33:20', '2-07:33:20')
    """
    minutes, second = divmod(seconds or 0, 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24) if days else (0, hours)
    return f"{f'{day}{days}' if day else ''}{hour:02}:{minute:02}:{second:02}"


def _mebibytes(options: ClusterOptions) -> int:
    from dask.utils import parse_bytes

    return -(-parse_bytes(options.memory or "0 B") // 2**20)


@contextlib.contextmanager
def submitted(
    options: ClusterOptions, environment: Mapping[str, str], at_once: int, attendance: Attendance
) -> Iterator[Client]:
    """Yield a client of a fixed number of jobs, which are cancelled with the block.

    Raises:
        BadRequest: dask-jobqueue, or the scheduler's own command, is not installed here; or there is no such interface.
    """
    from distributed import Client

    batch = BATCHES[options.kind]
    if shutil.which(batch.submit) is None:
        raise BadRequest(
            f"jobs cannot be submitted from here: there is no {batch.submit}",
            found=f'kind = "{options.kind}" in [cluster], and no such command on PATH',
            expected="a login node of the cluster, or another machine that may submit",
            do="run the command there; --dry-run shows the script of a job anywhere",
        )
    check_interface(options)
    cluster_class = _cluster_class(options.kind)
    watched = Watched(options, attendance.note, QUEUES.get(options.kind))
    scheduler = {"dashboard_address": "127.0.0.1:0"}  # nobody looks at it, and 8787 may be another command's
    with (
        certificates(options.logs or Path.cwd()) as security,
        cluster_class(
            job_cls=watched.job_class(cluster_class.job_cls),
            security=security,
            scheduler_options=scheduler,
            silence_logs="critical",
            **_keywords(options, environment, at_once),
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=options.workers, maximum=options.workers)  # `scale` would not replace what ends
        watched.cluster = cluster
        attendance.jobs = watched
        yield client


def check_interface(options: ClusterOptions) -> None:
    """Raise BadRequest if this machine has no network interface of the name that a job file says."""
    import psutil  # type: ignore[import-untyped]

    there = psutil.net_if_addrs()
    if options.interface is not None and options.interface not in there:
        raise BadRequest(
            f"this machine has no network interface {options.interface}",
            found=", ".join(there),
            expected="one that the command's machine and all nodes have",
            do="name it: interface in [cluster]; `ip address` lists them",
        )


@contextlib.contextmanager
def certificates(folder: Path) -> Iterator[Security]:
    """Yield what keeps strangers out, in files that workers find for as long as the block.

    Raises:
        BadRequest: the folder cannot be written.
    """
    from distributed import Security

    roles = ("scheduler", "worker", "client")
    own = Security.temporary().get_tls_config_for_role("worker")  # one pair for all three
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hidden = tempfile.TemporaryDirectory(prefix=".stillroom-", dir=folder)  # nobody else may read it
    except OSError as error:
        raise BadRequest(
            f"the certificates of this command and its workers cannot be written into {folder}",
            found=error.strerror or str(error),
            expected="a folder that can be written, and that all nodes see",
            do="name one: logs in [cluster]",
        ) from None
    with hidden as name:
        files = {part: f"{name}/{part}.pem" for part in ("ca_file", "cert", "key")}
        for part, file in files.items():
            Path(file).write_text(own[part])
        pairs = {f"tls_{role}_{part}": files[part] for role in roles for part in ("cert", "key")}
        yield Security(require_encryption=True, tls_ca_file=files["ca_file"], **pairs)


def job_script(options: ClusterOptions, environment: Mapping[str, str], at_once: int) -> str:
    """Return the script of a job as it would be submitted, with a stand-in for the address of this command.

    Raises:
        BadRequest: dask-jobqueue is not installed.
    """
    job_class = _cluster_class(options.kind).job_cls
    keywords = _keywords(options, environment, at_once)
    script: str = job_class("tls://THIS-COMMAND:PORT", name="NAME", **keywords).job_script()
    return script


def _cluster_class(kind: str) -> Any:
    """Return dask-jobqueue's class of a kind. Raises BadRequest."""
    try:
        import cryptography  # noqa: F401 - of certificates, without which Dask would end with a traceback
        import dask_jobqueue
    except ImportError as error:
        raise missing_extra(f'kind = "{kind}" in [cluster]', f"{error}", "slurm") from None
    return getattr(dask_jobqueue, BATCHES[kind].cluster)


def _keywords(options: ClusterOptions, environment: Mapping[str, str], at_once: int) -> dict[str, Any]:
    """Return what dask-jobqueue is told of a job."""
    batch = BATCHES[options.kind]
    own = batch.keywords(options)
    exported = {**QUIET, **environment}
    return {
        **own,
        "queue": options.queue,
        "cores": at_once,  # threads of a worker: so many shards at a time, whatever the processors
        "processes": 1,
        "memory": options.memory,
        "job_name": NAME,
        "log_directory": None if options.logs is None else str(options.logs),
        "interface": options.interface,
        "python": f"exec {shlex.quote(sys.executable)}",  # so that the job's signals are the worker's
        "worker_extra_args": ["--memory-limit", "0", "--no-dashboard"],
        "job_extra_directives": [*batch.directives, *own.get("job_extra_directives", []), *options.directives],
        "job_script_prologue": [
            # first: what the lines of `setup` take is of the job's time too
            f"export {LIMIT}={options.time} {ENDS}=$(($(date +%s) + {options.time}))",
            *options.setup,
            *(f"export {name}={value}" for name, value in exported.items()),
        ],
    }
