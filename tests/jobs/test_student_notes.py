from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.conftest import Program
from tests.student_train.toys import Recipe, write_cache

JOB = """
cache = "cache"
runs = "runs"
train = "toy/train"
validation = "toy/validation"
[[student]]
name = "s"
architecture = "mlp"
epochs = 2
objective = [{ loss = "labels" }, { loss = "kd", teacher = "sage", weight = %s }]
"""


@pytest.mark.parametrize(("weight", "notes"), [("1e-6", 1), ("1.0", 0)])
def test_a_term_that_teaches_next_to_nothing_is_told_once(
    tmp_path: Path, program: Program, weight: str, notes: int
) -> None:
    write_cache(tmp_path / "cache", Recipe())
    (tmp_path / "job.toml").write_text(JOB % weight)
    ended = program("student", "train", tmp_path / "job.toml")
    assert ended.code == 0, ended.err
    assert ended.err.count("s learns next to nothing from kd:sage") == notes
