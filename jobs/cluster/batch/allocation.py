"""Workers within the SLURM job that a command runs in already: its tasks, started by `srun`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cluster.attendance import Attendance
from jobs.cluster.batch.leaving import ENDS, LIMIT
from jobs.cluster.batch.submitting import QUIET, certificates, check_interface
from jobs.files.cluster_options import ClusterOptions
from storage.errors import BadRequest, TryAgain

if TYPE_CHECKING:
    from distributed import Client, Security

COME_S = 120.0  # until the first worker is there
LOG = re.compile(r"stillroom-\d+\.log")
KEPT_LOGS = 30  # of a folder, that of this job among them
LEAVE_S = 20.0  # until workers that are told to leave are gone


@contextlib.contextmanager
def allocated(
    options: ClusterOptions, environment: Mapping[str, str], at_once: int, attendance: Attendance
) -> Iterator[Client]:
    """Yield a client of a worker in each task of this job; they end with the block.

    Raises:
        BadRequest: this is no job of SLURM.
    """
    from distributed import Client, SpecCluster
    from distributed.scheduler import Scheduler

    if "SLURM_JOB_ID" not in os.environ or shutil.which("srun") is None:
        raise BadRequest(
            "this command does not run in a job of SLURM",
            found="inside = true in [cluster], and no SLURM_JOB_ID in the environment"
            if shutil.which("srun")
            else "inside = true in [cluster], and no srun on PATH",
            expected="a script that sbatch submits, with as many tasks as there are to be workers",
            do='sbatch --ntasks=4 --time=4:00:00 --wrap "cache build JOB.toml"; or without `inside`, from a login node',
        )
    check_interface(options)
    with certificates(Path.cwd()) as security:
        listening = {"security": security, "protocol": "tls://", "port": 0, "dashboard_address": "127.0.0.1:0"}
        scheduler = {"cls": Scheduler, "options": {**listening, "interface": options.interface}}
        with (
            SpecCluster(scheduler=scheduler, security=security, silence_logs=logging.CRITICAL) as cluster,
            _step(options, environment, at_once, cluster.scheduler_address, security) as step,
            Client(cluster) as client,
        ):
            attendance.jobs = _Step(step)
            yield client
            client.retire_workers(close_workers=True)  # after an error `srun` ends them, which says so


@contextlib.contextmanager
def _step(
    options: ClusterOptions, environment: Mapping[str, str], at_once: int, address: str, security: Security
) -> Iterator[subprocess.Popen[bytes]]:
    """Yield `srun`, which runs a worker in each task until it ends."""
    told = security.get_tls_config_for_role("worker")
    with contextlib.suppress(OSError):
        forget_logs(Path.cwd(), _log())
    processors = os.environ.get("SLURM_CPUS_PER_TASK")
    command = [
        "srun",
        f"--ntasks={num_tasks()}",
        "--overlap",  # where this command is a step itself, as under salloc
        "--kill-on-bad-exit=0",  # the others stay when one dies
        f"--output={_log()}",
        "--open-mode=append",  # of a job that was requeued
        *([f"--cpus-per-task={processors}"] if processors else []),  # it does not inherit that since SLURM 22.05
        *([f"--gpus-per-task={options.gpus}"] if options.gpus else []),
        *options.directives,
        *(sys.executable, "-m", "distributed.cli.dask_worker", address),
        *("--nthreads", str(at_once), "--memory-limit", "0", "--no-dashboard", "--death-timeout", "60"),
        *(["--interface", options.interface] if options.interface else []),
        *("--tls-ca-file", str(told["ca_file"]), "--tls-cert", str(told["cert"]), "--tls-key", str(told["key"])),
    ]
    own = {**os.environ, **QUIET, **_end(), **environment}
    step = subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL)  # noqa: S603 - what the job file says
    try:
        yield step
        with contextlib.suppress(subprocess.TimeoutExpired):
            step.wait(LEAVE_S)
    finally:
        step.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            step.wait(LEAVE_S)
        step.kill()
        step.wait()


def _log() -> str:
    """Return the file of what the workers print, in the folder that the command runs in."""
    return f"stillroom-{os.environ['SLURM_JOB_ID']}.log"


def forget_logs(folder: Path, own: str) -> None:
    """Delete what workers of earlier jobs have printed in a folder, but for the last of it: a night leaves one.

    Args:
        folder: that the command runs in.
        own: the log of this job, which stays.
    """
    logs = [path for path in folder.glob("stillroom-*.log") if LOG.fullmatch(path.name) and path.name != own]
    by_age = sorted(logs, key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in by_age[: len(logs) - KEPT_LOGS + 1] if len(logs) >= KEPT_LOGS else []:
        with contextlib.suppress(OSError):  # another command was first
            path.unlink()


def _end() -> dict[str, str]:
    """Return when this job ends, for its workers; nothing if that is not known, or never."""
    asked = ["squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-o", "%e"]
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    said = subprocess.run(asked, env=environment, check=False, capture_output=True, text=True)  # noqa: S603 - our own job
    ends = said.stdout.strip()
    return {ENDS: ends, LIMIT: str(int(ends) - int(time.time()))} if ends.isdecimal() else {}


def num_tasks() -> int:
    """Return the tasks of the job that this runs in: one a node where it has not said how many."""
    said = os.environ.get("SLURM_NTASKS") or os.environ.get("SLURM_JOB_NUM_NODES") or "1"
    return int(said)


class _Step:
    """The workers of a step. A `Jobs` of the attendance."""

    def __init__(self, step: subprocess.Popen[bytes]):
        self._step = step

    def look(self, client: Client, workers: int, absent_s: float) -> None:
        """Raise TryAgain if there are no workers, and none will come."""
        ended = self._step.poll() is not None
        if workers or (absent_s < COME_S and not ended):
            return
        raise TryAgain(
            "the workers of this job have ended" if ended else f"no worker of this job for {COME_S:.0f} s",
            found=f"srun ended with {self._step.returncode}" if ended else "srun still runs",
            do=f"look at {_log()}; the same job again goes on with the rest (sbatch, scontrol requeue)",
        )
