"""Very many Dask workers on one machine: each a process of its own, forked from one that has imported everything.

What they do is ours (`cache build`, with kind = "address"); a teacher that sleeps costs no processor, so that 64 of
them share two. The scheduler is Dask's own program.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
STARTED_S = 120.0
# As workers that a command starts itself have it (jobs.cluster.opening).
SETTINGS = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    **{f"DASK_DISTRIBUTED__WORKER__MEMORY__{limit}": "False" for limit in ("TARGET", "SPILL", "PAUSE")},
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical",
}


class Place(NamedTuple):
    """A running cluster: the scheduler's address and process."""

    address: str
    scheduler: int

    def scheduler_bytes(self) -> int:
        """Return the most memory that the scheduler has held so far."""
        return peak_bytes(self.scheduler)

    def scheduler_s(self) -> float:
        """Return the seconds of processor that the scheduler has taken so far."""
        times = Path(f"/proc/{self.scheduler}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def peak_bytes(process: int) -> int:
    """Return the most memory that a process has held so far."""
    text = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM")))


@contextlib.contextmanager
def many_workers(folder: Path, count: int, at_once: int = 2) -> Iterator[Place]:
    """Yield a cluster of so many workers, each of which does so much at a time; it ends with the block."""
    from distributed import Client

    file = folder / f"scheduler-{count}-{time.monotonic_ns()}.json"
    environment = {**os.environ, **SETTINGS}
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    command += ["--no-dashboard", "--scheduler-file", str(file)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "cwd": ROOT}
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(_ended(command, quiet))
        _wait_until(file.exists, scheduler)
        address = json.loads(file.read_text())["address"]
        workers = [sys.executable, "-m", "tests.many_workers", address, str(count), str(at_once)]
        parent = stack.enter_context(_ended(workers, quiet))
        with Client(address) as client:
            _wait_until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == count, parent)
        yield Place(address, scheduler.pid)


@contextlib.contextmanager
def _ended(command: list[str], options: dict[str, object]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that is ended with the block, with its children."""
    with subprocess.Popen(command, start_new_session=True, **options) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait_until(come: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + STARTED_S
    while not come():
        if process.poll() is not None or time.monotonic() > until_s:
            raise TimeoutError(f"{process.args!r} has not come: {process.returncode}")
        time.sleep(0.05)


def _fork(address: str, count: int, at_once: int) -> None:
    """Be so many workers, each in a process of its own."""
    import torch  # once for all of them

    import teacher_cache.teachers.loading
    import teacher_cache.work.perform  # noqa: F401

    torch.set_num_threads(1)
    children = []
    for number in range(count):
        if (child := os.fork()) == 0:
            asyncio.run(_work(address, at_once, number))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


async def _work(address: str, at_once: int, number: int) -> None:
    from distributed import Worker

    async with Worker(address, nthreads=at_once, name=f"worker-{number}", dashboard=False, host="127.0.0.1") as worker:
        await worker.finished()


if __name__ == "__main__":
    _fork(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
