"""Jobs between `sbatch` and their worker: whether they wait, why, and whether they have ended before one came."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.files.cluster_options import ClusterOptions
from storage.errors import BadRequest, StillroomError, TryAgain, duration

if TYPE_CHECKING:
    from distributed import Client

LOOK_EVERY_S = 5.0
ASK_S = 30.0  # until the batch scheduler's answer is not waited for
PENDING_S = 4 * 3600.0  # by default, without any worker
CONNECT_S = 120.0  # until a job that runs has its worker
TRIES = 3  # jobs in a row that end before their worker comes
RESUBMIT_S = 30.0  # after a submission that was refused
HOPELESS = (  # reasons that do not pass with time, as SLURM calls them
    "PartitionTimeLimit",
    "PartitionNodeLimit",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "QOSMaxWallDurationPerJobLimit",
    "JobHeldAdmin",
    "JobHeldUser",
)
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")


class Standing(NamedTuple):
    """How a job stands in its queue: the scheduler's own words."""

    state: str
    reason: str


def ask_slurm(ids: Sequence[str]) -> dict[str, Standing]:
    """Return how jobs stand; those that SLURM does not know any more are left out. Raises OSError: no answer."""
    command = ["squeue", "-h", "-t", "all", "-o", "%i|%T|%r", "-j", ",".join(ids)]
    try:
        done = subprocess.run(  # noqa: S603 - ids that the scheduler gave
            command, check=False, capture_output=True, text=True, timeout=ASK_S
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"squeue did not answer for {ASK_S:.0f} s") from None
    if done.returncode and "Invalid job id" not in done.stderr:
        raise OSError(done.stderr.strip() or f"squeue ended with {done.returncode}")
    lines = [line.split("|", 2) for line in done.stdout.splitlines()]
    return {job: Standing(state, reason) for job, state, reason in lines}


QUEUES: Mapping[str, Callable[[Sequence[str]], dict[str, Standing]]] = {"slurm": ask_slurm}


class Watched:
    """The jobs of one command, as their batch scheduler sees them. A `Jobs` of the attendance.

    Args:
        options: of the cluster.
        note: is told why jobs wait, and which were lost.
        ask: the batch scheduler; None: there is nobody to ask.
    """

    def __init__(
        self,
        options: ClusterOptions,
        note: Callable[[str], None],
        ask: Callable[[Sequence[str]], dict[str, Standing]] | None,
    ):
        self.cluster: Any = None
        self._options, self._note, self._ask = options, note, ask
        self._refusal, self._refused_s, self._accepted = "", 0.0, 0
        self._looked_s, self._told = 0.0, ""
        self._came: set[str] = set()  # jobs whose worker has been here
        self._running_s: dict[str, float] = {}
        self._vain: list[str] = []  # jobs in a row that have ended before their worker came

    def job_class(self, base: type[Any]) -> type[Any]:
        """Return Dask's class of a job, which tells us when it is refused."""
        from distributed.core import Status

        watched = self

        class Job(base):  # type: ignore[misc]
            async def start(self) -> None:
                try:
                    await super().start()
                except (RuntimeError, ValueError, OSError) as error:
                    watched._refusal, watched._refused_s = _stderr(str(error)), time.monotonic()
                    self.status = Status.failed
                    raise
                watched._refusal, watched._accepted = "", watched._accepted + 1

        return Job

    def look(self, client: Client, workers: int, absent_s: float) -> None:
        """Tell of jobs without a worker, and replace those that have ended.

        Raises:
            BadRequest: jobs are refused, wait for what does not come, or end before their workers come.
            TryAgain: none has begun for too long.
        """
        if self._refusal and not self._accepted:
            raise self._refused()
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = time.monotonic()
        self._submit_again()
        ids = {job.job_id: name for name, job in dict(self.cluster.workers).items() if job.job_id}
        here = {str(worker["name"]) for worker in client.scheduler_info(n_workers=-1)["workers"].values()}
        self._came |= {job for job, name in ids.items() if str(name) in here}
        if any(str(name) in here for name in ids.values()):
            self._vain.clear()
        waiting = [job for job, name in ids.items() if str(name) not in here]
        standings: dict[str, Standing] = {}
        try:
            if waiting and self._ask is not None:
                standings = self._ask(waiting)
                self._replace({job: ids[job] for job in waiting if _has_ended(standings.get(job))}, standings)
                self._check_running([job for job in waiting if job in standings], standings, workers)
            self._tell_pending(standings, len(ids))
        except OSError as error:
            self._tell(f"the batch scheduler does not answer: {error}")
        limit_s = self._options.pending_limit_s or PENDING_S
        if absent_s > limit_s:
            raise self._waited(limit_s, standings)

    def _submit_again(self) -> None:
        """Let jobs be submitted again that were refused a while ago, when others were not."""
        if not self._refusal:
            return
        self._tell(f"{self._options.kind} takes no more jobs just now: {self._refusal}")
        if time.monotonic() - self._refused_s > RESUBMIT_S:
            for name, job in dict(self.cluster.workers).items():
                if not job.job_id:
                    del self.cluster.workers[name]  # Dask submits whatever is missing here

    def _refused(self) -> StillroomError:
        temporary = any(word in self._refusal.lower() for word in ("contact", "timed out", "temporar", "connect"))
        kind = TryAgain if temporary else BadRequest
        return kind(
            f"{self._options.kind} does not take the job of a worker",
            found=self._refusal,
            expected="a job as --dry-run shows it",
            do="mend [cluster]: queue, account, time, memory, gpus, directives; `sinfo` lists partitions"
            if self._options.kind == "slurm"
            else "mend [cluster]: queue, account, time, memory, gpus, directives",
        )

    def _replace(self, ended: Mapping[str, Any], standings: Mapping[str, Standing]) -> None:
        """Let others take the place of jobs that have ended. Raises BadRequest: one after another does."""
        from distributed.core import Status

        for job, name in ended.items():
            if (gone := self.cluster.workers.pop(name, None)) is not None:  # Dask submits whatever is missing here
                gone.status = Status.closed
            self._running_s.pop(job, None)
            state = standings[job].state if job in standings else "gone"
            if job in self._came:
                self._note(f"job {job} has ended ({state}); another one takes its place")
                continue
            self._vain.append(job)
            if len(self._vain) >= TRIES:
                raise BadRequest(
                    f"{len(self._vain)} jobs in a row have ended before their workers came",
                    found=f"job {job}: {state}{self._log(job)}",
                    expected="a Python with the same packages at the same path, which reaches this host from there",
                    do=f"look at the log of job {job}; `setup` in [cluster] can prepare a node (module load …)",
                )
            self._note(f"job {job} has ended before its worker came ({state}); another one takes its place")

    def _check_running(self, jobs: Sequence[str], standings: Mapping[str, Standing], workers: int) -> None:
        """Raise BadRequest if jobs run, and their workers do not come."""
        now = time.monotonic()
        for job in jobs:
            if standings[job].state != "RUNNING" or job in self._came:
                continue
            since_s = self._running_s.setdefault(job, now)
            if now - since_s > CONNECT_S and not workers:
                address = self.cluster.scheduler_address
                raise BadRequest(
                    f"job {job} runs, but its worker does not come",
                    found=f"nobody at {address} for {CONNECT_S:.0f} s{self._log(job)}",
                    expected="nodes that can reach this host",
                    do="name the network that both are on: interface in [cluster]; look at the job's log",
                )

    def _tell_pending(self, standings: Mapping[str, Standing], jobs: int) -> None:
        pending = Counter(each.reason for each in standings.values() if each.state == "PENDING")
        if not pending:
            self._told = ""
            return
        reasons = ", ".join(pending)
        if hopeless := [reason for reason in pending if reason.split(":")[0] in HOPELESS]:
            raise BadRequest(
                f"jobs of workers wait for what does not come: {hopeless[0]}",
                found=f"{sum(pending.values())} of {jobs} jobs are pending, reason {reasons} (squeue -o %r)",
                do="mend [cluster], such as time, queue or account; `scontrol show partition` shows the limits",
            )
        self._tell(f"{sum(pending.values())} of {jobs} jobs are pending: {reasons}")

    def _waited(self, limit_s: float, standings: Mapping[str, Standing]) -> TryAgain:
        stand = Counter(f"{each.state}, reason {each.reason}" for each in standings.values())
        return TryAgain(
            f"no worker for {duration(limit_s)}: all jobs wait in the queue",
            found="; ".join(f"{count} job{'s' if count > 1 else ''} {text}" for text, count in stand.items())
            or self._told
            or None,
            expected=f"a worker within pending_limit_s = {limit_s:g}",
            do="run the same command again when the queue is shorter; or raise pending_limit_s in [cluster]",
        )

    def _tell(self, text: str) -> None:
        """Tell what was not told the last time."""
        if text != self._told:
            self._told = text
            self._note(text)

    def _log(self, job: str) -> str:
        """Return the last lines that a job has printed, if they can be found."""
        logs = self._options.logs or Path()
        for name in (f"slurm-{job}.out", f"stillroom-{job}.err", f"stillroom-{job}.out"):
            with contextlib.suppress(OSError):
                if lines := (logs / name).read_text(errors="replace").strip().splitlines()[-5:]:
                    return "\n".join([f"; {logs / name} ends with", *lines])
        return ""


def _has_ended(standing: Standing | None) -> bool:
    return standing is None or standing.state in ENDED


def _stderr(text: str) -> str:
    """Return what a command said, of Dask's account of it."""
    said = text.partition("stderr:\n")[2].strip() or text.strip()
    return said.replace("sbatch: error: ", "")
