"""The cluster that a command starts for itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import pytest

from jobs.cluster.flight import run_work, window
from jobs.cluster.opening import ClusterOptions, open_client
from storage.errors import BadRequest, TryAgain

if TYPE_CHECKING:
    from distributed import Worker

LOCAL = ClusterOptions(kind="local", workers=1)


@pytest.mark.slow
def test_what_a_command_starts_listens_to_this_machine_alone() -> None:
    with open_client(LOCAL, environments=[{}]):
        mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [c.laddr.ip for process in mine for c in process.net_connections("inet") if c.status == "LISTEN"]
    assert set(listening) == {"127.0.0.1"}


def worker_processes() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in str(child.cmdline()):
                found.append(child)
    return found


@pytest.fixture
def killer() -> Iterator[Callable[[int], None]]:
    """Yield a function that lets so many workers be killed as soon as there is one."""
    over = threading.Event()

    def kill(count: int) -> None:
        while count and not over.wait(0.005):
            for process in worker_processes()[:1]:
                process.kill()
                process.wait()
                count -= 1

    threads: list[threading.Thread] = []

    def begin(count: int) -> None:
        threads.append(threading.Thread(target=kill, args=(count,)))
        threads[0].start()

    yield begin
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_a_worker_that_is_killed_as_it_starts_is_started_again(killer: Callable[[int], None]) -> None:
    killer(1)
    with open_client(LOCAL, environments=[{}, {}]) as client:
        assert len(client.nthreads()) == 2


@pytest.mark.slow
def test_workers_that_are_killed_each_time_are_to_be_tried_again(killer: Callable[[int], None]) -> None:
    killer(1000)
    with (
        pytest.raises(TryAgain, match="workers on this machine died as they started, 3 times"),
        open_client(LOCAL, environments=[{}]),
    ):
        pass


def test_a_folder_that_workers_cannot_write_is_named_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path / "file"))
    dask.config.refresh()
    try:
        with pytest.raises(BadRequest) as caught, open_client(LOCAL, environments=[{}]):
            pass
    finally:
        monkeypatch.undo()
        dask.config.refresh()
    assert caught.value.what == f"Dask's workers cannot write files of their own into {tmp_path}/file"
    assert "DASK_TEMPORARY_DIRECTORY" in (caught.value.do or "")


def test_what_is_no_fault_of_the_workers_folder_is_not_laid_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    def refuse(**options: Any) -> None:
        raise RuntimeError("Nanny failed to start.") from OSError(24, "Too many open files", "/proc/self/status")

    monkeypatch.setattr(distributed, "SpecCluster", refuse)
    with pytest.raises(TryAgain, match="died as they started") as caught, open_client(LOCAL, environments=[{}]):
        pass
    assert "Too many open files" in str(caught.value.found)


class Work(NamedTuple):
    key: str
    seconds: float


def sleeping(work: Work) -> int:
    time.sleep(work.seconds)
    return os.getpid()


async def profiled(dask_worker: Worker) -> int:
    await asyncio.sleep(2.5)  # Dask begins another profile each second
    return len(dask_worker.profile_history)


@pytest.mark.slow
def test_a_worker_keeps_no_profile_of_itself() -> None:
    with open_client(LOCAL, environments=[{}]) as client:
        assert list(client.run(profiled).values()) == [0]


@pytest.mark.slow
def test_a_frozen_worker_is_noticed_and_its_work_done_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.cluster.opening.WORKER_TTL", "2s")  # Dask waits for ten of its heartbeats at the least
    with open_client(LOCAL, environments=[{}]) as client:
        results = run_work(client, sleeping, [Work(f"w{i}", 0.2) for i in range(4)], places=window)
        pids = [next(results)[1]]
        os.kill(int(str(pids[0])), signal.SIGSTOP)
        began_s = time.monotonic()
        pids += [pid for _, pid in results]
        assert time.monotonic() - began_s < 60
    assert len(pids) == 4
    assert len(set(pids)) == 2
