"""Views from end to end, by the programs that a user types."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import Program
from tests.teacher_cache.toys import DIGITS, teacher_section, write_job, write_teacher

pytestmark = pytest.mark.slow

VIEWS = """
[views]
count = {count}
plain = true
transforms = [
    {{ kind = "pad_crop", padding = 1 }},
    {{ kind = "random_resized_crop", scale = [0.6, 1.0] }},
    {{ kind = "color_jitter", brightness = 0.2, contrast = 0.2 }},
    {{ kind = "cutout", size = 2 }},
    {{ kind = "mixup", alpha = 0.4, probability = 0.3 }},
    {{ kind = "cutmix", probability = 0.3 }},
]
"""
STUDENTS = """
cache = "cache"
runs = "runs"
train = "digits/train"
validation = "digits/validation"
{more}
[[student]]
name = "a"
architecture = "mlp"
options = {{ hidden = [32] }}
epochs = 4
objective = [{{ loss = "labels", weight = 0.5 }}, {{ loss = "kd", teacher = "toy", weight = 0.5 }}]
"""


@pytest.fixture
def run(program: Program) -> Callable[..., str]:
    """Return a function that runs a command and returns what it printed: with `--json`, its one JSON value."""

    def run(*arguments: object, code: int = 0) -> str:
        ended = program(*arguments)
        assert ended.code == code, ended.out + ended.err
        return ended.out if "--json" in arguments else ended.out + ended.err

    return run


def test_teachers_and_students_share_views(tmp_path: Path, run: Callable[..., str]) -> None:
    write_teacher(tmp_path)
    job = write_job(tmp_path, DIGITS, teacher_section(), VIEWS.format(count=2))
    dry = json.loads(run("cache", "build", job, "--dry-run", "--json"))
    assert [stage["stage"] for stage in dry["stages"]] == [
        "digits/ingest",
        "digits/toy",
        "digits/toy/view-000",
        "digits/toy/view-001",
    ]
    run("cache", "build", job)
    status = json.loads(run("cache", "status", tmp_path / "cache", "--json"))["stages"]
    assert [(stage["view"], stage["rows_missing"]) for stage in status] == [
        ("plain", 0),
        ("plain", 0),
        ("view-000", 0),
        ("view-001", 0),
    ]
    assert "all whole" in run("cache", "verify", tmp_path / "cache")

    students = tmp_path / "students.toml"
    students.write_text(STUDENTS.format(more=""))
    said = run("student", "train", students)
    assert "views: 2; epoch e shows view (e - 1) mod 2" in said
    metrics = pl.read_parquet(tmp_path / "runs" / "a" / "metrics.parquet")
    assert metrics["view"].to_list() == ["view-000", "view-001", "view-000", "view-001"]
    assert metrics["agreement"].null_count() == 0

    more = write_job(tmp_path, DIGITS, teacher_section(), VIEWS.format(count=3))
    assert json.loads(run("cache", "build", more, "--json"))["built"] == 8  # of the third view alone
    other = write_job(tmp_path, DIGITS, teacher_section(), VIEWS.format(count=3).replace("size = 2", "size = 3"))
    assert "views.json differs in transforms" in run("cache", "build", other, code=2)


def test_students_are_refused_views_that_are_not_there(tmp_path: Path, run: Callable[..., str]) -> None:
    write_teacher(tmp_path)
    run("cache", "build", write_job(tmp_path, DIGITS, teacher_section(), VIEWS.format(count=1)))
    students = tmp_path / "students.toml"
    students.write_text(STUDENTS.format(more="views = 2"))
    said = run("student", "train", students, code=2)
    assert "teacher toy, view-001: no shard 0 to 7" in said
    assert "with [views] count = 2 or more" in said
