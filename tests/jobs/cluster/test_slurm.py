"""Builds and fleets on a real SLURM, which these tests start themselves."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from storage.cache import Cache
from student_train.run_files.records import read_record
from tests.conftest import Program
from tests.jobs.cluster.test_student_cluster import write_students
from tests.slurm import private_slurm, slurm, why_not
from tests.student_train.toys import Recipe, write_cache
from tests.teacher_cache.toys import teacher_section, write_digits, write_job, write_teacher

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]

JOBS = 'kind = "slurm"\nworkers = 2\ntime = "0:10:00"\nmemory = "1 GiB"\n'


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with private_slurm(tmp_path_factory.mktemp("slurm") / "s") as conf:
        yield conf


@pytest.fixture
def folder(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder to submit from; a worker that is gone is replaced at once."""
    monkeypatch.setenv("SLURM_CONF", str(conf))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.cluster.batch.pending.LOOK_EVERY_S", 1.0)
    return tmp_path


def jobs(conf: Path) -> list[str]:
    """Return the jobs that run."""
    return slurm(conf, "squeue", "-h", "-t", "RUNNING", "-o", "%i").split()


def wait_until_empty(conf: Path, limit_s: float) -> None:
    """Wait until nothing is left in the queue."""
    until_s = time.monotonic() + limit_s
    while slurm(conf, "squeue", "-h"):
        assert time.monotonic() < until_s
        time.sleep(0.5)


def node(conf: Path, state: str) -> None:
    """Let the node take no more jobs, or take them again."""
    (name,) = slurm(conf, "sinfo", "-h", "-N", "-o", "%N", "-p", "main").split()
    slurm(conf, "scontrol", "update", f"nodename={name}", f"state={state}", "reason=test")


class Beside:
    """Does something beside a command as soon as it may; what it raises is the test's."""

    def __init__(self, when: Callable[[], bool], act: Callable[[], object]):
        self.done = threading.Event()
        self._when, self._act, self._over = when, act, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.2):
            if self._when():
                self._act()
                self.done.set()
                return


def test_a_build_outlives_that_one_of_its_two_jobs_is_cancelled_and_the_node_drained(
    conf: Path, folder: Path, program: Program
) -> None:
    write_teacher(folder, seconds=0.5)
    job = write_job(folder, write_digits(folder, 400), teacher_section(seconds=0.5), cluster=JOBS)
    cancelled: list[str] = []

    def cancel() -> None:
        cancelled.append(jobs(conf)[0])
        node(conf, "drain")
        slurm(conf, "scancel", cancelled[0])

    def begun() -> bool:
        return len(jobs(conf)) == 2 and len(list(folder.glob("cache/digits/toy/**/*.parquet"))) > 2

    try:
        with Beside(begun, cancel) as beside:
            ended = program("cache", "build", job, "--json")
    finally:
        node(conf, "resume")
    assert ended.code == 0, ended.err
    assert beside.done.is_set()
    assert json.loads(ended.out)["built"] == 50
    assert len(Cache.open(str(folder / "cache")).committed("digits")) == 25
    assert f"job {cancelled[0]} has ended (CANCELLED); another one takes its place" in ended.err
    assert "1 of 2 jobs are pending: " in ended.err
    wait_until_empty(conf, 30)


def test_a_build_within_one_job_has_a_worker_in_each_of_its_tasks(conf: Path, folder: Path) -> None:
    write_teacher(folder)
    job = write_job(folder, write_digits(folder, 100), teacher_section(), cluster='kind = "slurm"\ninside = true\n')
    program = Path(sys.executable).with_name("cache")
    options = ("--ntasks=2", "--time=10", "--mem=2000", "-o", "said", "-e", "errors")
    slurm(conf, "sbatch", *options, "--wrap", f"{program} build {job} --json")
    wait_until_empty(conf, 120)
    said = json.loads((folder / "said").read_text())
    assert (said["built"], said["exit_code"]) == (14, 0)
    errors = (folder / "errors").read_text()
    assert "srun:" not in errors  # the workers have left of themselves
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("queue", "what", "found"),
    [
        ("nowhere", "slurm does not take the job of a worker", "invalid partition specified: nowhere"),
        ("short", "jobs of workers wait for what does not come: PartitionTimeLimit", "2 of 2 jobs are pending"),
    ],
)
def test_jobs_that_slurm_will_never_run_are_told_with_its_own_reason(
    conf: Path, folder: Path, program: Program, queue: str, what: str, found: str
) -> None:
    write_teacher(folder)
    job = write_job(folder, write_digits(folder, 16), teacher_section(), cluster=f'{JOBS}queue = "{queue}"\n')
    ended = program("cache", "build", job, "--json")
    said = json.loads(ended.out)
    assert (ended.code, said["what"]) == (2, what)
    assert found in said["found"]


LIMITED = JOBS.replace("0:10:00", "0:01:00").replace("workers = 2", "workers = 1")  # one is enough to be late


def test_a_shard_that_takes_longer_than_a_job_may_is_named_before_slurm_ends_the_job(
    conf: Path, folder: Path, program: Program
) -> None:
    write_teacher(folder, seconds=300)
    job = write_job(folder, write_digits(folder, 16), teacher_section(seconds=300), cluster=LIMITED)
    ended = program("cache", "build", job, "--json")
    said = json.loads(ended.out)
    assert (ended.code, said["error"]) == (2, "BadRequest")
    assert said["what"] == "digits/toy/plain/00000 takes longer than a job of this cluster may"
    assert "raise `time` in [cluster]" in said["do"]


FLEET = """
[[student]]
name = "mlp"
architecture = "mlp"
objective = [{ loss = "kd", teacher = "sage" }]
[student.sweep]
seed = [0, 1, 2]
"""


def test_a_fleet_is_trained_in_two_jobs(conf: Path, folder: Path, program: Program) -> None:
    cache = write_cache(folder / "toy", Recipe())
    job = write_students(folder, cache, FLEET, cluster=JOBS)
    foreseen = json.loads(program("student", "train", job, "--dry-run", "--json").out)
    assert [group["students"] for group in foreseen["groups"]] == [2, 1]
    assert "#SBATCH --mem=1024M\n#SBATCH -t 00:10:00\n#SBATCH --no-requeue\n" in foreseen["job_script"]
    ended = program("student", "train", job)
    assert ended.code == 0, ended.err
    assert {read_record(folder / "runs" / f"mlp-seed_{seed}").status for seed in range(3)} == {"finished"}
