"""A build over several hosts, and links between them that drop and come back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from student_train.run_files.records import read_record
from tests.hosts import Host, private_hosts, why_not
from tests.jobs.cluster.test_student_cluster import write_students
from tests.student_train.toys import Recipe, write_cache
from tests.teacher_cache import test_faults
from tests.teacher_cache.test_faults import MOMENTS, PATIENCE_S, SHARDS, assert_whole, commits, on, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]
whole, folder = test_faults.whole, test_faults.folder

DASK_WAITS_S = 12  # for a host that is silent, of every connection: 30 unless it is told so, 11 at the least
AGAIN = 'trap "kill \\$!; exit" TERM; while :; do "$@" & wait; sleep 0.2; done'  # as a platform starts its workers


class Site(NamedTuple):
    """Four hosts: a command, a scheduler, and two workers that a platform starts again when they end."""

    desk: Host
    head: Host
    workers: tuple[Host, Host]

    @property
    def cluster(self) -> str:
        """What `[cluster]` says of it."""
        return f'kind = "address"\naddress = "tcp://{self.head.address}:8786"'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Yield hosts on which Dask runs; what is left on them is ended."""
    with private_hosts(4) as (desk, head, *workers), contextlib.ExitStack() as stack:
        site = Site(desk, head, (workers[0], workers[1]))
        scheduler = head.program("dask", "scheduler", "--host", head.address, "--dashboard-address", "127.0.0.1:0")
        stack.enter_context(running(scheduler, tmp_path / "scheduler.log"))
        for number, host in enumerate(workers):
            options = ("--host", host.address, "--nthreads", "1", "--no-dashboard", "--local-directory", tmp_path)
            worker = host.program("dask", "worker", f"tcp://{head.address}:8786", *options, "--death-timeout", "20")
            stack.enter_context(running(["sh", "-c", AGAIN, "sh", *worker], tmp_path / f"worker-{number}.log"))
        yield site


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    """Let a command run, whose children are ended with it."""
    own = {**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{DASK_WAITS_S}s"}
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=file, env=own, start_new_session=True) as process,
    ):
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def building(site: Site, job: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a build of the command's host, as it runs."""
    own = {**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{DASK_WAITS_S}s"}
    command = site.desk.program("cache", "build", job, "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Return how a build ended: status, what it says, what it told meanwhile."""
    said, told = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in told, told
    return process.returncode, json.loads(said), told


def test_a_link_that_drops_for_seconds_is_waited_for(site: Site, folder: Path, whole: Path) -> None:
    with building(site, on(folder, site.cluster)) as process:
        wait_for(lambda: MOMENTS["in the teacher"](folder), process)
        for host in (site.workers[0], site.head):
            host.plug("down")
            time.sleep(3)
            host.plug("up")
        code, said, told = ended(process)
    assert (code, said["built"]) == (0, 2 * SHARDS), told
    assert_whole(folder, whole)


def test_the_work_of_a_host_that_is_cut_off_is_done_by_another_and_it_may_come_back(
    site: Site, folder: Path, whole: Path
) -> None:
    cut_off = site.workers[0]
    with building(site, on(folder, site.cluster)) as process:
        wait_for(lambda: MOMENTS["in the teacher"](folder), process)
        cut_off.plug("down")
        time.sleep(2 * DASK_WAITS_S)
        cut_off.plug("up")
        code, said, told = ended(process)
    # What it was at when the link dropped it has written all the same, for the disk was another way.
    assert (code, said["built"] + said["lost"]) == (0, 2 * SHARDS), told
    assert f"workers gone: 1 (tcp://{cut_off.address}:" in told
    assert_whole(folder, whole)


def test_a_command_that_is_cut_off_ends_and_the_same_one_goes_on(site: Site, folder: Path, whole: Path) -> None:
    job = on(folder, site.cluster)
    with building(site, job) as process:
        wait_for(lambda: MOMENTS["in the teacher"](folder), process)
        site.desk.plug("down")
        began_s = time.monotonic()
        code, said, told = ended(process)
    assert (code, said["error"], said["what"]) == (75, "TryAgain", "the Dask scheduler is gone"), told
    assert time.monotonic() - began_s < 10 * DASK_WAITS_S
    before = commits(folder, "toy/plain")
    site.desk.plug("up")
    with building(site, job) as process:
        code, said, told = ended(process)
    assert (code, said["present"]) == (0, SHARDS + before), told
    assert_whole(folder, whole)


HIDE = 'mount -t tmpfs none "$0" && exec "$@"'  # a folder of the worker's own, where the others have another one


def test_a_runs_folder_that_a_worker_does_not_see_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with private_hosts(2) as (desk, host):
        cluster = f'kind = "address"\naddress = "tcp://{desk.address}:8786"'
        cache = write_cache(tmp_path / "toy", Recipe())
        one = '[[student]]\nname = "s"\narchitecture = "mlp"\nobjective = [{ loss = "labels" }]\n'
        job = write_students(tmp_path, cache, one, cluster=cluster)
        scheduler = desk.program("dask", "scheduler", "--host", desk.address, "--dashboard-address", "127.0.0.1:0")
        options = ("--host", host.address, "--nthreads", "1", "--no-dashboard", "--local-directory", tmp_path)
        apart = ["unshare", "--mount", "sh", "-c", HIDE, str(tmp_path / "runs")]
        hidden = Host(host.address, (*host.inside, *apart), host.link)
        worker = hidden.program("dask", "worker", f"tcp://{desk.address}:8786", *options)
        with running(scheduler, tmp_path / "scheduler.log"), running(worker, tmp_path / "worker.log"):
            ended = subprocess.run(
                desk.program("student", "train", job, "--device", "cpu"),
                check=False,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
    told = ended.stdout + ended.stderr
    assert ended.returncode in (1, 2), told
    assert "does not see the runs folder" in told
    assert "Traceback" not in told
    assert read_record(tmp_path / "runs/s") is None
