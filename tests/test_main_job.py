"""The whole main job as README tells it: ingest, teach from labels, cache, train from the cache, compare."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.jobs.schedule.place import cron_command

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent


def run(program: str, *arguments: object) -> Any:
    command = [str(PROGRAMS / program), *map(str, arguments), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def copy_jobs(folder: Path) -> Path:
    """Copy the jobs of the demonstration into a folder, with fewer epochs; return where they are."""
    shutil.copytree(REPOSITORY / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, epochs in (("digits.teacher.toml", "epochs = 40"), ("digits.students.toml", "epochs = 30")):
        text = (folder / "jobs" / name).read_text()
        assert epochs in text
        (folder / "jobs" / name).write_text(text.replace(epochs, "epochs = 8"))
    return folder / "jobs"


def run_main_job(jobs: Path, cache: str) -> pl.DataFrame:
    run("cache", "build", jobs / "digits.ingest.toml", "--workers", 1)
    run("student", "train", jobs / "digits.teacher.toml")
    run("cache", "build", jobs / "digits.cache.toml", "--workers", 1)
    run("student", "train", jobs / "digits.students.toml")
    return compared(jobs, cache)


def compared(jobs: Path, cache: str) -> pl.DataFrame:
    assert run("cache", "verify", cache)["bad"] == []
    return pl.DataFrame(run("student", "compare", jobs.parent / "runs/digits")["students"])


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Return the comparison at the end of the main job on a local disk, of which a cron line has made a night."""
    jobs = copy_jobs(tmp_path_factory.mktemp("local"))
    (jobs.parent / ".venv").symlink_to(PROGRAMS.parent)
    variables = {"PATH": os.environ["PATH"], "STILLROOM": str(jobs.parent), "METRICS": str(jobs.parent)}
    ended = subprocess.run(["sh", "-c", cron_command()], env=variables, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
    assert (jobs.parent / "runs/digits/report.html").exists()
    assert len(list(jobs.parent.glob("stillroom-*.prom"))) == 4
    return compared(jobs, str(jobs.parent / "caches/digits"))


@pytest.mark.slow
def test_the_main_job_gives_students_that_read_digits(local: pl.DataFrame) -> None:
    assert set(local["student"]) == {"mlp-labels", "mlp-kd", "mlp-kd-alone", "mlp-kd-hint"}
    assert local["accuracy"].min() > 0.9


@pytest.mark.slow
def test_the_main_job_is_the_same_on_an_object_store(local: pl.DataFrame, tmp_path: Path, bucket: str) -> None:
    jobs = copy_jobs(tmp_path)
    for job in jobs.glob("digits.*.toml"):
        job.write_text(job.read_text().replace("../caches/digits", bucket))
    remote = run_main_job(jobs, bucket)
    same = ["student", "accuracy", "agreement", "cross_entropy"]
    assert remote.sort("student").select(same).equals(local.sort("student").select(same))
