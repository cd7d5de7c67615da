from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from student_train.options.job_text import job_text
from student_train.options.sections import DataOptions, StudentOptions

JOBS = Path(__file__).resolve().parents[3] / "jobs"
EVERYTHING = {
    "name": "all-of.it_1",
    "architecture": "gpt",
    "options": {"depth": 1, "width": 8, "heads": 2, "dropout": 0.1, "tied": False, "nested": {"a": [[1], [2]]}},
    "mean": [0.1, 0.2, 0.3],
    "std": 1e-5,
    "objective": [
        {"loss": "labels", "weight": 0.1, "smoothing": 0.1},
        {"loss": "kd", "teachers": {"a": 0.7, "b.c": 0.3}, "mixing": "correct", "temperature": 1e-3},
        {"loss": "reverse_kl", "teacher": "a", "allow_bucket": True},
        {"loss": "rkd", "teacher": "a", "feature": "f", "student_layer": "network.x", "angle": 0.0},
    ],
    "epochs": 7,
    "seed": 2**62,
    "optimizer": "sgd",
    "learning_rate": 1e-20,
    "clip_norm": 3.0,
    "patience_epochs": 2,
    "compile": True,
}
DATA: dict[str, Any] = {"train": "d/train", "validation": "d", "allow_partial": True, "views": 0, "window_shards": 3}


def read_back(folder: Path, text: str) -> tuple[str, Path, DataOptions, list[StudentOptions]]:
    """Return the request of a job that lies in a folder of its own."""
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/job.toml").write_text(text)
    job = read_job(folder / "elsewhere/job.toml", StudentJob)
    data = DataOptions(**job.model_dump(include=set(DataOptions.model_fields)))
    return job.cache, job.runs, data, job.student


@pytest.mark.parametrize("cache", ["/caches/a b", "s3://bucket/prefix"])
def test_a_job_is_read_as_the_request_it_was_made_of(tmp_path: Path, cache: str) -> None:
    data = DataOptions.model_validate(DATA)
    students = [
        StudentOptions.model_validate(EVERYTHING | {"std": (1e-5,)}),
        StudentOptions.model_validate({"name": "b", "architecture": "mlp", "objective": [{"loss": "labels"}]}),
        StudentOptions.model_validate(
            {"name": "c", "architecture": "mlp", "objective": [{"loss": "labels"}], "max_steps": 9, "warmup_steps": 2}
        ),
    ]
    runs = tmp_path / 'a "quoted" \\ folder\t'
    assert read_back(tmp_path, job_text(cache, runs, data, students)) == (cache, runs, data, students)


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.students.toml")), ids=lambda path: path.name)
def test_every_job_of_ours_comes_back(tmp_path: Path, path: Path) -> None:
    job = read_job(path, StudentJob)
    data = DataOptions(**job.model_dump(include=set(DataOptions.model_fields)))
    text = job_text(job.cache, job.runs, data, job.student)
    assert read_back(tmp_path, text) == (job.cache, job.runs, data, job.student)


def test_paths_of_here_are_not_looked_for_beside_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = StudentOptions.model_validate(
        {"name": "own", "architecture": "m.py:build", "objective": [{"loss": "labels"}]}
    )
    text = job_text("caches/a", Path("runs"), DataOptions.model_validate(DATA), [own])
    cache, runs, _, students = read_back(tmp_path, text)
    assert (cache, runs) == (f"{tmp_path}/caches/a", tmp_path / "runs")
    assert students[0].architecture == f"{tmp_path}/m.py:build"


def test_what_is_said_does_not_depend_on_defaults() -> None:
    plain = StudentOptions.model_validate({"name": "b", "architecture": "mlp", "objective": [{"loss": "labels"}]})
    text = job_text("/c", Path("/r"), DataOptions.model_validate({"train": "d", "validation": "d"}), [plain])
    told = {line.partition(" = ")[0].strip() for line in text.splitlines() if " = " in line}
    off = {"views", "learning_rate", "clip_norm", "ema_decay", "patience_epochs", "checkpoint_every_steps"}
    off |= {
        "path",
        "quantize",
        "start",
        "adapter",
        "betas",
        "micro_batch_size",
        "warmup_steps",
        "max_steps",
        "evaluate_every_steps",
        "best_by",
    }
    off |= {"patience_evaluations", "mixture", "mean", "std", "size"}
    assert (set(DataOptions.model_fields) | set(StudentOptions.model_fields)) - told - {"options", "objective"} == off
