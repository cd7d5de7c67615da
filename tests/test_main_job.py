"""The whole main job as README tells it: ingest, teach from labels, cache, train from the cache, compare."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = Path(sys.executable).parent


def run(program: str, *arguments: object) -> Any:
    command = [str(PROGRAMS / program), *map(str, arguments), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """Return the jobs of the demonstration in a folder of their own, with fewer epochs."""
    shutil.copytree(REPOSITORY / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, epochs in (("digits.teacher.toml", "epochs = 40"), ("digits.students.toml", "epochs = 30")):
        text = (tmp_path / "jobs" / name).read_text()
        assert epochs in text
        (tmp_path / "jobs" / name).write_text(text.replace(epochs, "epochs = 8"))
    return tmp_path / "jobs"


def run_main_job(jobs: Path, cache: str) -> pl.DataFrame:
    run("cache", "build", jobs / "digits.ingest.toml", "--workers", 1)
    run("student", "train", jobs / "digits.teacher.toml")
    run("cache", "build", jobs / "digits.cache.toml", "--workers", 1)
    run("student", "train", jobs / "digits.students.toml")
    assert run("cache", "verify", cache)["bad"] == []
    return pl.DataFrame(run("student", "compare", jobs.parent / "runs/digits"))


@pytest.mark.slow
def test_the_main_job_gives_students_that_read_digits(jobs: Path) -> None:
    table = run_main_job(jobs, str(jobs.parent / "caches/digits"))
    assert set(table["student"]) == {"mlp-labels", "mlp-kd", "mlp-kd-alone", "mlp-kd-hint"}
    assert table["accuracy"].min() > 0.9


@pytest.mark.slow
def test_the_main_job_is_the_same_on_an_object_store(jobs: Path, bucket: str) -> None:
    local = run_main_job(jobs, str(jobs.parent / "caches/digits")).sort("student")
    shutil.move(jobs.parent / "runs", jobs.parent / "runs-local")
    for job in jobs.glob("digits.*.toml"):
        job.write_text(job.read_text().replace("../caches/digits", bucket))
    remote = run_main_job(jobs, bucket).sort("student")
    same = ["student", "accuracy", "agreement", "cross_entropy"]
    assert remote.select(same).equals(local.select(same))
