"""A user's own folders called `jobs`, `storage` and so on, in the working folder: never imported in our place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from tests.jobs.test_isolation import only_the_cache
from tests.teacher_cache.test_faults import PATIENCE_S, on, started, wait_for

pytestmark = pytest.mark.slow

ROOMS = ("storage", "teacher_cache", "student_train", "jobs")
PYTHON = Path(sys.executable).name
PROGRAMS = {"cache": ("build", "job.toml"), "student": ("train", "students.toml", "--device", "cpu", "--json")}


def run_in(folder: Path, *command: object, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run an installed program in a folder, as a user would who has gone there; `path` is PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {} if path is None else {"PYTHONPATH": path}
    program, *arguments = command
    line = [str(Path(sys.executable).with_name(str(program))), *map(str, arguments)]
    return subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False
    )


@pytest.fixture
def folder(kitchen: Path, tmp_path: Path) -> Path:
    """Return jobs over a user's own teacher and a cache of it, among packages of the user with our rooms' names."""
    only_the_cache(kitchen, tmp_path)  # what students need
    for name in ("digits.npz", "toy.safetensors"):
        shutil.copy2(kitchen / name, tmp_path / name)
    shutil.copy2(kitchen / "toy.py", tmp_path / "mymodule.py")
    job = (kitchen / "job.toml").read_text().replace("toy.py:build", "mymodule:build")
    (tmp_path / "job.toml").write_text(job.replace('"cache"', '"own"'))
    for room in ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("raise RuntimeError('a folder of the user was imported')\n")
    return tmp_path


def on_cluster(folder: Path, cluster: str) -> None:
    """Let both jobs run on a cluster."""
    on(folder, cluster)
    students = folder / "students.toml"
    students.write_text(students.read_text().replace("[[student]]", f"[cluster]\n{cluster}\nthreads = 1\n[[student]]"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_they_are_passed_over_even_where_they_come_first(folder: Path, program: str) -> None:
    on_cluster(folder, 'kind = "local"\nworkers = 1')  # in the command's own process, and in its workers
    done = run_in(folder, program, *PROGRAMS[program], path=".")  # by which `mymodule:build` is found
    assert done.returncode == 0, done.stderr


def test_a_folder_of_job_files_is_passed_over(folder: Path) -> None:
    (folder / "jobs/__init__.py").unlink()  # no Python at all: before the finder of an editable install all the same
    (folder / "jobs/mine.toml").write_text("")
    assert run_in(folder, "cache", "info", "cache", path=".").returncode == 0


def test_the_working_folder_is_no_place_for_modules_by_itself(folder: Path) -> None:
    done = run_in(folder, "cache", "build", "job.toml")
    assert (done.returncode, "there is no module mymodule" in done.stderr) == (2, True), done.stderr


def test_torchrun_passes_them_over(folder: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--no-python")
    done = run_in(folder, PYTHON, *torchrun, Path(sys.executable).with_name("student"), *PROGRAMS["student"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exit_code"] == 0


@contextlib.contextmanager
def cluster_in(folder: Path, *worker: str) -> Iterator[str]:
    """Yield the address of a scheduler and a worker that were started by `python -m`, which puts the folder first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    scheduler = ("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port)
    with started(PYTHON, *scheduler, "--dashboard-address", ":0", cwd=folder) as running:
        wait_for(answers, running)
        common = ("--nthreads", "1", "--local-directory", folder / "dask", "--no-dashboard")
        with started(PYTHON, "-m", "distributed.cli.dask_worker", address, *common, *worker, cwd=folder):
            with Client(address) as client:
                client.wait_for_workers(1, timeout=PATIENCE_S)
            yield address


def test_a_worker_that_was_started_among_them_passes_them_over(folder: Path) -> None:
    with cluster_in(folder) as address:
        on_cluster(folder, f'kind = "address"\naddress = "{address}"')
        for program, arguments in PROGRAMS.items():
            done = run_in(folder, program, *arguments, path=".")
            assert done.returncode == 0, done.stderr


def test_a_worker_that_has_loaded_one_is_refused_by_name(folder: Path) -> None:
    (folder / "jobs/__init__.py").write_text("")
    with cluster_in(folder, "--preload", "jobs") as address:
        on_cluster(folder, f'kind = "address"\naddress = "{address}"')
        for program, arguments in PROGRAMS.items():
            done = run_in(folder, program, *arguments, path=".")
            assert done.returncode == 2, done.stderr
            assert f"another `jobs` is loaded already, from {folder / 'jobs/__init__.py'}" in done.stderr
            assert "Traceback" not in done.stderr
