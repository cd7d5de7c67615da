"""Jobs of a real SLURM that end before their work, wait for ever, or are not what they should be."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from storage.cache import Cache
from storage.cache.verify import verify
from student_train.run_files.records import read_record
from tests.conftest import Program
from tests.jobs.cluster import test_slurm
from tests.jobs.cluster.test_slurm import JOBS, Beside, node, wait_until_empty
from tests.jobs.cluster.test_student_cluster import write_students
from tests.slurm import slurm, why_not
from tests.student_train.toys import Recipe, write_cache
from tests.teacher_cache.toys import teacher_section, write_digits, write_job, write_teacher

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]
conf, folder = test_slurm.conf, test_slurm.folder

LATE_S = 240  # a minute, until SLURM looks at the time, and what a busy machine takes
AGAIN = "#!/bin/sh\n[ -e again ] && export HURRY=1 || export STEP_SECONDS=2\ntouch again\nexec {}\n"


def wait_for_state(conf: Path, job: str, state: str, limit_s: float = LATE_S) -> None:
    until_s = time.monotonic() + limit_s
    while f"JobState={state}" not in (said := slurm(conf, "scontrol", "show", "job", job)):
        assert time.monotonic() < until_s, said
        time.sleep(0.5)


def submit(conf: Path, folder: Path, command: str, *options: str) -> str:
    """Submit a command that has time when it comes a second time; return the number of its job."""
    (folder / "script").write_text(AGAIN.format(command))
    places = ("--chdir", str(folder), "-o", "said", "-e", "told", "--open-mode=append")
    return slurm(
        conf, "sbatch", "--parsable", "--requeue", "--time=1", *places, *options, str(folder / "script")
    ).strip()


def test_what_slurm_ends_at_its_time_limit_goes_on_when_it_is_requeued(
    conf: Path, folder: Path, program: Program
) -> None:
    bin_folder = Path(sys.executable).parent
    built, trained = folder / "built", folder / "trained"
    for each in (built, trained):
        each.mkdir()
    write_teacher(built, seconds=2)
    build = write_job(built, write_digits(built, 800), teacher_section(seconds=2))
    cache = write_cache(folder / "toy", Recipe())
    one = '[[student]]\nname = "slow"\narchitecture = "own.py:own"\nepochs = 12\nobjective = [{ loss = "labels" }]\n'
    train = write_students(trained, cache, one, cluster='kind = "inline"')
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 --no-python"
    jobs = [
        submit(conf, built, f"{bin_folder}/cache build {build} --json", "--mem=2000"),
        submit(conf, trained, f"{torchrun} {bin_folder}/student train {train} --device cpu", "--mem=4000", "-c2"),
    ]
    for job in jobs:
        wait_for_state(conf, job, "TIMEOUT")
    before = len(Cache.open(str(built / "cache")).committed("digits", "toy"))
    assert 0 < before < 50
    assert "run the same command again; it resumes" in (built / "told").read_text()
    assert "student slow stopped in epoch" in (trained / "told").read_text()
    assert read_record(trained / "runs/slow") is None
    for job in jobs:
        slurm(conf, "scontrol", "requeue", job)
        slurm(conf, "scontrol", "update", f"jobid={job}", "starttime=now")  # not two minutes after, its own way
    for job in jobs:
        wait_for_state(conf, job, "COMPLETED")
    said = json.loads("{" + (built / "said").read_text().rpartition("\n{")[2])
    assert (said["present"], said["built"], said["exit_code"]) == (50 + before, 50 - before, 0)
    assert verify(Cache.open(str(built / "cache"))).bad == ()
    (folder / "alone").mkdir()
    assert (
        program("student", "train", write_students(folder / "alone", cache, one, cluster='kind = "inline"')).code == 0
    )
    here, there = (load_file(each / "runs/slow/student.safetensors") for each in (folder / "alone", trained))
    for name, tensor in here.items():
        torch.testing.assert_close(there[name], tensor, rtol=1e-4, atol=1e-5)


def test_jobs_that_stay_in_the_queue_are_told_with_slurms_reason_and_not_waited_for_without_end(
    conf: Path, folder: Path, program: Program
) -> None:
    write_teacher(folder)
    job = write_job(folder, write_digits(folder, 16), teacher_section(), cluster=f"{JOBS}pending_limit_s = 20\n")
    node(conf, "drain")
    try:
        ended = program("cache", "build", job, "--json")
    finally:
        node(conf, "resume")
    said = json.loads(ended.out)
    assert (ended.code, said["error"], said["what"]) == (
        75,
        "TryAgain",
        "no worker for 20 s: all jobs wait in the queue",
    )
    assert re.fullmatch(
        "(. jobs? PENDING, reason (.*DRAINED.*|ReqNodeNotAvail.*|Resources|Priority)(; )?)+", said["found"]
    )
    assert re.search("[12] of 2 jobs are pending: ", ended.err)
    wait_until_empty(conf, 120)


def test_a_worker_with_another_torch_is_refused_by_name(conf: Path, folder: Path, program: Program) -> None:
    (folder / "other/torch-1.0.dist-info").mkdir(parents=True)
    (folder / "other/torch-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    write_teacher(folder)
    setup = f'setup = ["export PYTHONPATH={folder}/other"]\n'
    job = write_job(folder, write_digits(folder, 16), teacher_section(), cluster=JOBS + setup)
    ended = program("cache", "build", job, "--json")
    said = json.loads(ended.out)
    assert (ended.code, said["what"]) == (2, "workers come with another environment than this command's")
    assert ": torch 1.0" in said["found"]
    assert not list(folder.glob("cache/digits/ingest/*.parquet"))
    wait_until_empty(conf, 120)


def test_a_worker_stays_below_the_memory_that_a_dry_run_names(conf: Path, folder: Path, program: Program) -> None:
    write_teacher(folder)
    one = JOBS.replace("workers = 2", "workers = 1")
    job = write_job(folder, write_digits(folder, 1600, rows_per_shard=400), teacher_section(), cluster=one)
    foreseen = json.loads(program("cache", "build", job, "--dry-run", "--json").out)
    bound_bytes, peaks = foreseen["worker_memory_bytes"], dict[int, int]()

    def look() -> bool:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError, AttributeError):
                if "distributed.cli.dask_worker" in process.cmdline() and process.environ().get("SLURM_CONF") == str(
                    conf
                ):
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    peaks[process.pid] = 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
        return False

    with Beside(look, lambda: None):
        assert program("cache", "build", job).code == 0
    assert peaks
    assert 50e6 < max(peaks.values()) < bound_bytes
    assert f"--mem={1024}M" in foreseen["job_script"]
    tight = job.read_text().replace('"1 GiB"', '"64 MiB"')
    job.write_text(tight)
    (note,) = json.loads(program("cache", "build", job, "--dry-run", "--json").out)["notes"]
    assert note.startswith('note: memory = "64 MiB" in [cluster] is less than a worker may need')
