"""Groups of students on real Dask workers: the same weights as in one process, whatever dies when."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from distributed import Client

from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from storage.cache import Cache
from student_train.run_files.records import read_record
from student_train.running.train import train_students
from student_train.stepping.parallel import ALONE
from tests.conftest import Program
from tests.jobs.cli.test_programs import imported_by
from tests.jobs.test_isolation import run_and_list_rooms
from tests.student_train.running.test_loop import weights
from tests.student_train.toys import Recipe, write_cache
from tests.teacher_cache.test_faults import PATIENCE_S, started, wait_for
from tests.teacher_cache.toys import run_program

pytestmark = pytest.mark.slow

LOCAL = 'kind = "local"\nworkers = 2\nthreads = 1'
OWN = """
import os
import time
from pathlib import Path

import torch

HOLD = Path(__file__).with_name("hold")


class Own(torch.nn.Module):
    def __init__(self, num_classes, input_shape, crash):
        super().__init__()
        self.layer = torch.nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_classes)
        self.seconds, self.crash, self.steps = float(os.environ.get("STEP_SECONDS", 0)), crash, 0

    def forward(self, x):
        if self.training and x.device.type == "cpu":
            time.sleep(self.seconds)
            self.steps += 1
            while self.steps > 8 and HOLD.exists():  # an epoch has 6
                time.sleep(0.01)
            if self.crash and self.steps > 4:
                os._exit(7)
        return self.layer(x.flatten(1))


def own(num_classes, input_shape, crash=False):
    return Own(num_classes, input_shape, crash)
"""
VARIED = """
[[student]]
name = "labels"
architecture = "mlp"
objective = [{ loss = "labels" }]
[[student]]
name = "hint"
architecture = "mlp"
batch_size = 20
objective = [{ loss = "hint", teacher = "sage", feature = "pooled", student_layer = "network.hidden1" }]
[[student]]
name = "cnn"
architecture = "cnn"
options = { widths = [4, 8] }
objective = [{ loss = "kd", teacher = "sage" }]
[[student]]
name = "dropout"
architecture = "mlp"
options = { hidden = [16], dropout = 0.5 }
seed = 4
objective = [{ loss = "kd", teacher = "sage" }]
[[student]]
name = "patient"
architecture = "mlp"
epochs = 6
patience_epochs = 1
ema_decay = 0.9
objective = [{ loss = "labels" }]
"""
SLOW = """
[[student]]
name = "slow"
architecture = "own.py:own"
epochs = 6
objective = [{ loss = "labels" }]
[student.sweep]
seed = [0, 1, 2, 3]
"""
VARIED_NAMES = ["labels", "hint", "cnn", "dropout", "patient"]
SLOW_NAMES = [f"slow-seed_{seed}" for seed in range(4)]


class Dask:
    """A scheduler and two workers of several threads each; what a test has ended of them is started again."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.folder = folder
        self.processes = contextlib.ExitStack()
        self.scheduler: subprocess.Popen[str] | None = None
        self.workers: list[subprocess.Popen[str]] = []

    @property
    def section(self) -> str:
        return f'kind = "address"\naddress = "{self.address}"\nthreads = 1'

    def make_whole(self) -> None:
        if self.scheduler is None or self.scheduler.poll() is not None:
            self.processes.close()
            self.workers = []
            options = ("--host", "127.0.0.1", "--port", self.port, "--dashboard-address", ":0")
            self.scheduler = self.processes.enter_context(started("dask", "scheduler", *options))
            wait_for(self.answers, self.scheduler)
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        options = (self.address, "--nthreads", "3", "--local-directory", self.folder, "--no-dashboard")
        while len(self.workers) < 2:
            self.workers.append(self.processes.enter_context(started("dask", "worker", *options)))
        with Client(self.address, timeout=PATIENCE_S) as client:
            client.wait_for_workers(2, timeout=PATIENCE_S)

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Clustered(NamedTuple):
    """What a command with a cluster of its own has left."""

    folder: Path
    out: str
    err: str
    rooms: set[str]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return write_cache(tmp_path_factory.mktemp("cache") / "toy", Recipe())


def write_students(folder: Path, cache: Cache, students: str, *, cluster: str, top: str = "") -> Path:
    """Write a student job, whose students step one by one, and a user's own architecture beside it."""
    (folder / "own.py").write_text(OWN)
    if students == SLOW:
        (folder / "hold").touch()
    path = folder / "job.toml"
    path.write_text(
        f'cache = "{cache.url}"\nruns = "runs"\ntrain = "toy/train"\nvalidation = "toy/validation"\n'
        f'stacking = "never"\n{top}[defaults]\nepochs = 3\nbatch_size = 32\n[cluster]\n{cluster}\n{students}'
    )
    return path


@pytest.fixture(scope="module")
def alone(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the runs of all students, trained in one process and one thread."""
    folder = tmp_path_factory.mktemp("alone")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    job = read_job(write_students(folder, cache, VARIED + SLOW, cluster='kind = "inline"'), StudentJob)
    assert train_students(job.request("cpu", ALONE)).exit_code == 0
    torch.set_num_threads(threads)
    return folder / "runs"


def assert_same(runs: Path, expected: Path, names: list[str]) -> None:
    assert {name for name in names if weights(runs, name) != weights(expected, name)} == set()


def wait_until_all_have_begun(folder: Path, process: subprocess.Popen[str]) -> None:
    """Hold slow students within their second epoch until each has had its first, after which it has a checkpoint."""
    wait_for(lambda: all((folder / "runs" / name / "checkpoint.json").exists() for name in SLOW_NAMES), process)
    (folder / "hold").unlink()


def steps_within_an_epoch(folder: Path) -> list[int]:
    """Return how far checkpoints are within an epoch: 0 for those that an epoch's end has left."""
    return [json.loads(path.read_text())["step"] for path in (folder / "runs").glob("*/checkpoint.json")]


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in str(p.cmdline())]


@pytest.fixture(autouse=True)
def own_steps_take_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make programs that a test starts slow enough to be disturbed."""
    monkeypatch.setenv("STEP_SECONDS", "0.05")


@pytest.fixture(scope="module")
def once_started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    dask = Dask(tmp_path_factory.mktemp("dask"))
    with dask.processes:
        yield dask


@pytest.fixture
def dask(once_started: Dask, own_steps_take_time: None) -> Dask:
    """Return a scheduler whose workers are there."""
    once_started.make_whole()
    return once_started


@pytest.fixture(scope="module")
def clustered(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Clustered:
    """Return what a command with a cluster of its own has left of students of all kinds."""
    folder = tmp_path_factory.mktemp("clustered")
    job = write_students(folder, cache, VARIED, cluster=LOCAL)
    ended, rooms = run_and_list_rooms("student", "train", job, "--json")
    *told, _ = ended.stderr.splitlines(keepends=True)
    return Clustered(folder, ended.stdout, "".join(told), rooms)


def test_a_checkpoint_that_a_kill_left_beside_a_finished_student_is_deleted(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    labels = VARIED.partition('[[student]]\nname = "hint"')[0]
    path = write_students(tmp_path, cache, labels, cluster='kind = "inline"')
    with monkeypatch.context() as patch:
        patch.setattr("student_train.run_files.folder.delete_checkpoint", lambda folder: None)
        assert train_students(read_job(path, StudentJob).request("cpu", ALONE)).exit_code == 0
    assert (tmp_path / "runs/labels/checkpoint.json").exists()
    again = program("student", "train", write_students(tmp_path, cache, labels, cluster=LOCAL), "--json")
    assert again.code == 0, again.err
    assert not list((tmp_path / "runs").glob("*/checkpoint*"))


def test_students_end_at_the_very_weights_of_one_process(clustered: Clustered, alone: Path) -> None:
    told = json.loads(clustered.out)
    assert [record["student"] for record in told["students"]] == VARIED_NAMES
    assert (told["failed"], told["exit_code"]) == ({}, 0)
    assert_same(clustered.folder / "runs", alone, VARIED_NAMES)
    assert "5 students in 2 groups, one a worker" in clustered.err
    last = [line for line in clustered.err.splitlines() if line.startswith("5 students: ")][-1]
    assert re.match(r"5 students: (\d+) of \1 steps", last)
    assert [path.name for path in (clustered.folder / "runs").iterdir() if path.name.startswith(".")] == []


def test_with_nothing_left_no_cluster_is_opened(cache: Cache, alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone, tmp_path / "runs")
    job = write_students(tmp_path, cache, VARIED, cluster=LOCAL)
    modules = imported_by("student", "train", job)
    assert "torch" in modules
    assert modules.isdisjoint({"dask", "distributed"})


def test_a_command_with_a_cluster_loads_no_teacher_code(clustered: Clustered) -> None:
    assert clustered.rooms >= {"student_train", "distributed"}
    assert "teacher_cache" not in clustered.rooms


def test_a_killed_worker_is_replaced_and_its_students_go_on(cache: Cache, alone: Path, tmp_path: Path) -> None:
    with started("student", "train", write_students(tmp_path, cache, SLOW, cluster=LOCAL)) as process:
        wait_until_all_have_begun(tmp_path, process)
        workers_of(process)[0].kill()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors
    assert_same(tmp_path / "runs", alone, SLOW_NAMES)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_leaves_checkpoints_to_go_on_from(
    cache: Cache, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, code: int
) -> None:
    job = write_students(tmp_path, cache, SLOW, cluster=LOCAL)
    command = [str(Path(sys.executable).with_name("student")), "train", str(job)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until_all_have_begun(tmp_path, process)
    os.killpg(process.pid, sent)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in errors) == (code, False), errors
    assert "students stopped" in errors
    assert any(steps_within_an_epoch(tmp_path))
    monkeypatch.delenv("STEP_SECONDS")
    done = run_program("student", "train", job)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "runs", alone, SLOW_NAMES)


def test_a_student_that_kills_its_worker_fails_with_its_group_alone(cache: Cache, tmp_path: Path) -> None:
    crashing = '[[student]]\nname = "crash"\narchitecture = "own.py:own"\noptions = { crash = true }\n'
    students = VARIED[: VARIED.index('[[student]]\nname = "hint"')] + crashing + 'objective = [{ loss = "labels" }]\n'
    done = run_program("student", "train", write_students(tmp_path, cache, students, cluster=LOCAL), "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, list(told["failed"])) == (1, ["crash"])
    assert told["failed"]["crash"].startswith("WorkerDied: student crash was lost with its worker, twice")
    assert [record["student"] for record in told["students"]] == ["labels"]


def test_a_running_scheduler_trains_one_group_a_worker(
    cache: Cache, alone: Path, tmp_path: Path, dask: Dask, program: Program
) -> None:
    job = write_students(tmp_path, cache, VARIED, cluster=dask.section)
    plan = json.loads(program("student", "train", job, "--dry-run", "--json").out)
    assert [group["group"] for group in plan["groups"]] == [1, 2]
    assert plan["memory"] is None
    done = run_program("student", "train", job)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "runs", alone, VARIED_NAMES)
    with Client(dask.address) as client:
        loaded = client.run(eval, "[name in __import__('sys').modules for name in ('student_train', 'teacher_cache')]")
    assert list(loaded.values()) == [[True, False]] * 2


def test_a_worker_that_is_told_to_leave_hands_its_students_to_another(
    cache: Cache, alone: Path, tmp_path: Path, dask: Dask
) -> None:
    job = write_students(tmp_path, cache, SLOW, cluster=dask.section)
    with started("student", "train", job) as process:
        wait_until_all_have_begun(tmp_path, process)
        dask.workers[0].terminate()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in errors) == (0, False), errors
    assert_same(tmp_path / "runs", alone, SLOW_NAMES)


def test_a_lost_scheduler_is_to_be_tried_again_and_students_have_checkpoints(
    cache: Cache, tmp_path: Path, dask: Dask
) -> None:
    job = write_students(tmp_path, cache, SLOW, cluster=dask.section)
    with started("student", "train", job) as process:
        wait_until_all_have_begun(tmp_path, process)
        assert dask.scheduler is not None
        dask.scheduler.kill()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in errors) == (75, False), errors
    assert "TryAgain: the Dask scheduler is gone" in errors
    wait_for(lambda: any(steps_within_an_epoch(tmp_path)))


def test_halving_decides_within_a_group_and_says_so(cache: Cache, tmp_path: Path) -> None:
    students = (
        '[[student]]\nname = "m"\narchitecture = "mlp"\nobjective = [{ loss = "labels" }]\n[student.sweep]\n'
        "learning_rate = [0.00001, 0.0001, 0.003, 0.01]\n"
    )
    top = "[halving]\nfirst_epochs = 1\nfactor = 2\n"
    done = run_program("student", "train", write_students(tmp_path, cache, students, cluster=LOCAL, top=top))
    assert done.returncode == 0, done.stderr
    assert "[halving] compares the students of one group with each other" in done.stderr
    records = [read_record(path) for path in sorted((tmp_path / "runs").iterdir())]
    errors = [record.error for record in records if record is not None and record.status == "stopped"]
    assert [("place 2 of 2" in (error or "")) for error in errors] == [True, True]


@pytest.mark.parametrize(
    "address", ["", "localhost", "tcp://", "tcp://localhost:port", "foo://localhost:1", "x y", "tls://localhost:9"]
)
def test_an_address_that_is_none_is_told(cache: Cache, tmp_path: Path, program: Program, address: str) -> None:
    one = VARIED[: VARIED.index('[[student]]\nname = "hint"')]
    job = write_students(tmp_path, cache, one, cluster=f'kind = "address"\naddress = "{address}"')
    ended = program("student", "train", job)
    assert (ended.code, "Traceback" in ended.err) == (2, False), ended.err
    assert f"BadRequest: {address!r} is no address of a Dask scheduler" in ended.err
