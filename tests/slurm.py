"""A private SLURM of one node on this machine, of Debian's packages: everything of it lies in one folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=400
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=5
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
PartitionName=short Nodes={host} MaxTime=1 State=UP OverSubscribe=FORCE:8
"""


def why_not() -> str | None:
    """Return why there can be no SLURM here; None if there can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"SLURM is not installed: no {', '.join(missing)}" if missing else None


@contextlib.contextmanager
def private_slurm(folder: Path) -> Iterator[Path]:
    """Yield the configuration of a SLURM that runs for as long as the block, for SLURM_CONF."""
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True)
    for private in (folder, folder / "munge"):
        private.chmod(0o700)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf, host = folder / "slurm.conf", socket.gethostname().partition(".")[0]
    ports = {"controller": _free_port(), "daemon": _free_port()}
    conf.write_text(CONF.format(host=host, folder=folder, user=getpass.getuser(), **ports))
    own = {name: f"{folder}/munge/{name}" for name in ("socket", "log", "seed")}
    files = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in own.items()]
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    try:
        _run("munged", "--force", f"--key-file={key}", f"--pid-file={folder}/munged.pid", *files)
        _run("slurmctld", "-c", env=environment)
        _run("slurmd", "-c", env=environment)
        _wait_until_idle(environment, folder)
        yield conf
    finally:
        _cancel_all(environment)  # else what watches each job would wait for its controller for ever
        for name in ("slurmctld", "slurmd", "munged"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)


def slurm(conf: Path, *command: str) -> str:
    """Return what a command of SLURM says."""
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout


def _cancel_all(environment: dict[str, str]) -> None:
    """Cancel what is left in the queue, and wait until it is gone."""
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        _run("scancel", "--me", env=environment, check=False)
        for _ in range(100):
            if not _run("squeue", "-h", env=environment, check=False):
                return
            time.sleep(0.2)


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    for _ in range(100):
        if "idle" in _run("sinfo", "-h", "-o", "%T", env=environment, check=False):
            return
        time.sleep(0.2)
    raise RuntimeError((folder / "slurmctld.log").read_text()[-2000:])


def _run(*command: str, env: dict[str, str] | None = None, check: bool = True) -> str:
    # daemons keep what they are given: they must not hold a pipe of ours
    with open(os.devnull, "rb") as nothing:
        done = subprocess.run(command, env=env, check=check, stdin=nothing, stdout=subprocess.PIPE, timeout=60)
    return done.stdout.decode()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
