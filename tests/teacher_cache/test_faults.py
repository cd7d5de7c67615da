"""Real processes, killed for real: whatever dies when, the same command ends in the same cache."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from storage.cache import Cache
from storage.cache.verify import verify
from tests.conftest import Ended, Program
from tests.teacher_cache.toys import (
    build,
    contents,
    teacher_section,
    write_digits,
    write_job,
    write_teacher,
)

pytestmark = pytest.mark.slow

SHARDS, ROWS_PER_SHARD = 12, 8
PATIENCE_S = 300  # enough on a machine that does much else; what hangs is ended all the same
LOCAL = 'kind = "local"\nworkers = 2'

Moment = Callable[[Path], bool]
Finish = Callable[..., Ended]


def commits(folder: Path, stage: str) -> int:
    return len([path for path in (folder / "cache" / "digits" / stage).glob("*.parquet") if path.name[0] != "."])


MOMENTS: dict[str, Moment] = {
    "just created": lambda folder: (folder / "cache" / "cache.json").exists(),
    "in the ingest": lambda folder: commits(folder, "ingest") >= 1,
    "in the teacher": lambda folder: commits(folder, "toy/plain") >= 3,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a job, its teacher, and the cache that an undisturbed build made of it."""
    folder = tmp_path_factory.mktemp("whole")
    write_teacher(folder)
    dataset = write_digits(folder, SHARDS * ROWS_PER_SHARD, rows_per_shard=ROWS_PER_SHARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HURRY", "1")
        assert build(write_job(folder, dataset, teacher_section(seconds=0.2))).built == 2 * SHARDS
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of that job without its cache."""
    for name in ("toy.py", "toy.safetensors", "digits.npz", "job.toml"):
        shutil.copy2(whole / name, tmp_path / name)
    return tmp_path


def on(folder: Path, cluster: str) -> Path:
    """Return the job, to be run on another cluster."""
    job = folder / "job.toml"
    text = job.read_text()
    job.write_text(text[: text.index("[cluster]")] + f"[cluster]\n{cluster}\nthreads = 1\n")
    return job


@contextlib.contextmanager
def started(*arguments: object, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Yield a running program; whatever is left of it and its children is killed at the end."""
    command = [str(Path(sys.executable).with_name(str(arguments[0]))), *map(str, arguments[1:])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)
    family: list[psutil.Process] = []
    try:
        yield process
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
    finally:
        for one in [*family, process]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                one.kill()
        process.communicate()


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended with {process.returncode} before it could be disturbed\n{process.stderr.read()}")  # type: ignore[union-attr]
        time.sleep(0.01)


def assert_whole(folder: Path, whole: Path) -> None:
    assert contents(folder / "cache") == contents(whole / "cache")
    assert verify(Cache.open(str(folder / "cache"))).bad == ()


@pytest.fixture
def finish(program: Program, monkeypatch: pytest.MonkeyPatch) -> Finish:
    """Return a function that gives the same command again, in this process and with a teacher that is quick."""

    def again(job: Path, *options: str) -> Ended:
        monkeypatch.setenv("HURRY", "1")
        ended = program("cache", "build", job, *options)
        assert (ended.code, ended.err.count("Traceback")) == (0, 0), ended.err
        return ended

    return again


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_command_is_made_good_by_the_same_command(
    folder: Path, whole: Path, finish: Finish, moment: str
) -> None:
    job = folder / "job.toml"
    with started("cache", "build", job) as process:
        wait_for(lambda: MOMENTS[moment](folder), process)
        process.kill()
        process.wait()
    assert not (folder / "cache/digits/toy/plain/00011.parquet").exists()
    finish(job)
    assert_whole(folder, whole)


def test_a_killed_command_takes_its_workers_with_it_and_is_made_good(folder: Path, whole: Path, finish: Finish) -> None:
    job = on(folder, LOCAL)
    with started("cache", "build", job) as process:
        wait_for(lambda: MOMENTS["in the teacher"](folder), process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert psutil.wait_procs(family, timeout=30)[1] == []
    finish(job)
    assert_whole(folder, whole)


@pytest.mark.parametrize("moment", ["in the ingest", "in the teacher"])
def test_a_killed_worker_is_replaced_within_the_same_command(folder: Path, whole: Path, moment: str) -> None:
    with started("cache", "build", on(folder, LOCAL)) as process:
        wait_for(lambda: MOMENTS[moment](folder), process)
        workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in str(p.cmdline())]
        workers[0].kill()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors
    assert_whole(folder, whole)


@pytest.mark.parametrize(
    ("sent", "code", "cluster"),
    [(signal.SIGTERM, 143, 'kind = "inline"'), (signal.SIGINT, 130, 'kind = "inline"'), (signal.SIGTERM, 143, LOCAL)],
    ids=["SIGTERM inline", "SIGINT inline", "SIGTERM local"],
)
def test_a_signal_stops_a_build_that_then_resumes(
    folder: Path, whole: Path, finish: Finish, sent: signal.Signals, code: int, cluster: str
) -> None:
    job = on(folder, cluster)
    with started("cache", "build", job) as process:
        wait_for(lambda: MOMENTS["in the teacher"](folder), process)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, errors
    assert "run the same command again; it resumes" in errors
    assert "Traceback" not in errors
    before = commits(folder, "toy/plain")
    done = finish(job, "--json")
    assert f'"present": {SHARDS + before},' in done.out
    assert_whole(folder, whole)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_an_inline_build_within_seconds_and_not_after_its_shard(
    tmp_path: Path, finish: Finish, program: Program, sent: signal.Signals, code: int
) -> None:
    write_teacher(tmp_path)
    dataset = write_digits(tmp_path, SHARDS * ROWS_PER_SHARD, rows_per_shard=ROWS_PER_SHARD)
    write_job(tmp_path, dataset, teacher_section(seconds=600))  # of a single forward pass
    job = on(tmp_path, 'kind = "inline"')
    with started("cache", "build", job) as process:
        wait_for(lambda: commits(tmp_path, "ingest") == SHARDS, process)
        time.sleep(2)  # now it is at the first shard of the teacher, or asks it about its first rows
        assert process.poll() is None
        process.send_signal(sent)
        sent_s = time.monotonic()
        _, errors = process.communicate(timeout=PATIENCE_S)
        seconds = time.monotonic() - sent_s
    assert (process.returncode, "Traceback" in errors) == (code, False), errors
    assert "run the same command again; it resumes" in errors
    assert seconds < 30, f"it took {seconds:.0f} s"  # 3 on a quiet machine
    assert (commits(tmp_path, "ingest"), commits(tmp_path, "toy/plain")) == (SHARDS, 0)
    status = program("cache", "status", job)  # of the job: the cache has not heard of its teacher
    assert (status.code, " toy " in status.out) == (3, True)
    assert verify(Cache.open(str(tmp_path / "cache"))).bad == ()
    finish(job)
    assert commits(tmp_path, "toy/plain") == SHARDS


def test_ctrl_c_on_a_terminal_which_reaches_the_workers_too_stops_quietly(
    folder: Path, whole: Path, finish: Finish
) -> None:
    job = on(folder, LOCAL)
    command = [str(Path(sys.executable).with_name("cache")), "build", str(job)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: MOMENTS["in the teacher"](folder), process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in errors) == (130, False), errors
    finish(job)
    assert_whole(folder, whole)


def test_two_builders_at_once_end_in_one_correct_cache(folder: Path, whole: Path) -> None:
    job = folder / "job.toml"
    with started("cache", "build", job, "--wait") as one, started("cache", "build", job, "--wait") as other:
        errors = [process.communicate(timeout=PATIENCE_S)[1] for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], errors
    assert sum("waiting for its end: process" in each for each in errors) == 1, errors
    assert_whole(folder, whole)
    groups = list((folder / "cache").rglob("*.zarr.zip"))
    assert len(groups) == 2 * SHARDS  # the loser of each shard has deleted its own


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Callable[[], tuple[str, subprocess.Popen[str]]]]:
    """Yield a function that starts a scheduler and a worker on one port, and returns the address and the scheduler."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"

    with contextlib.ExitStack() as stack:

        def start() -> tuple[str, subprocess.Popen[str]]:
            common = ["--no-dashboard"]
            scheduler = stack.enter_context(
                started("dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--dashboard-address", ":0")
            )
            wait_for(lambda: _answers(port), scheduler)
            stack.enter_context(
                started("dask", "worker", address, "--nthreads", "2", "--local-directory", tmp_path, *common)
            )
            return address, scheduler

        yield start


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_running_scheduler_computes_the_same_and_its_death_is_made_good(
    folder: Path, whole: Path, finish: Finish, dask: Callable[[], tuple[str, subprocess.Popen[str]]]
) -> None:
    address, scheduler = dask()
    job = on(folder, f'kind = "address"\naddress = "{address}"')
    with started("cache", "build", job) as process:
        wait_for(lambda: MOMENTS["in the teacher"](folder), process)
        scheduler.kill()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in errors) == (75, False), errors
    assert "TryAgain: the Dask scheduler is gone" in errors
    scheduler.wait()
    dask()
    finish(job)
    assert_whole(folder, whole)


def test_a_scheduler_that_does_not_answer_is_told_at_once_and_to_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.cluster.opening.CONNECT_TIMEOUT_S", 1)
    from jobs.cluster.builds import open_runner
    from jobs.files.cluster_options import BuildClusterOptions
    from storage.errors import TryAgain

    with (
        pytest.raises(TryAgain, match="no Dask scheduler answers"),
        open_runner(BuildClusterOptions(kind="address", address="tcp://127.0.0.1:9")),
    ):
        pass


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Yield a function that mounts a disk of its own with these options."""
    mount = tmp_path / "disk"
    mount.mkdir()

    def make(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a disk of its own, and not everywhere")
        return mount

    yield make
    subprocess.run(["umount", str(mount)], capture_output=True, check=False)


def test_a_full_disk_is_told_and_the_build_resumes_when_there_is_room(
    folder: Path, whole: Path, finish: Finish, program: Program, tiny_disk: Callable[[str], Path]
) -> None:
    disk = tiny_disk("size=128k")
    job = folder / "job.toml"
    job.write_text(job.read_text().replace('cache = "cache"', 'cache = "disk/cache"'))
    done = program("cache", "build", job)
    assert (done.code, "Traceback" in done.err) == (1, False), done.err
    assert re.search("StorageFailure: cannot write .*\n  found     No space left on device\n", done.err)
    kept = contents(disk / "cache")
    assert kept
    assert kept.items() <= contents(whole / "cache").items()
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    finish(job)
    assert contents(disk / "cache") == contents(whole / "cache")


def test_a_folder_that_cannot_be_written_is_told(
    folder: Path, program: Program, tiny_disk: Callable[[str], Path]
) -> None:
    tiny_disk("ro")
    job = folder / "job.toml"
    job.write_text(job.read_text().replace('cache = "cache"', 'cache = "disk/cache"'))
    done = program("cache", "build", job)
    assert (done.code, "Traceback" in done.err) == (2, False), done.err
    assert "cannot be written\n  found     nothing can be made in" in done.err
    assert "name a folder that is not on a read-only disk" in done.err
