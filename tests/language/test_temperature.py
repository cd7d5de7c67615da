"""The temperature of tokens that a job leaves out."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from storage.errors import MissingCapability
from student_train.preparing.dry_run import dry_run
from student_train.running import events
from student_train.running.train import train_students
from tests.language.toys import counting_cache, counting_teacher, request, small_gpt

SPARSE = 'encoding = { kind = "sparse", k = 3 }'  # temperature 1 alone, as by default
NOTE = "kd:right: temperature 1, which the job leaves out"


def test_kd_of_tokens_and_sparse_targets_has_the_temperature_that_every_cache_has(tmp_path: Path) -> None:
    cache = counting_cache(tmp_path, counting_teacher(scale=3.0, extra=SPARSE))
    asked = request(cache, tmp_path / "runs", small_gpt(objective=[{"loss": "kd", "teacher": "right"}]))
    assert dry_run(asked).warnings == (f"note: {NOTE}",)
    told: list[events.Event] = []
    record = train_students(asked, report=told.append).records[0]
    assert events.LeftOpen(("gpt",), NOTE) in told
    assert record.identity["student"]["objective"][0]["temperature"] == 1.0
    job = tomllib.loads((tmp_path / "runs/gpt/job.toml").read_text())
    assert job["student"][0]["objective"][0]["temperature"] == 1.0
    said = request(
        cache, tmp_path / "runs", small_gpt(objective=[{"loss": "kd", "teacher": "right", "temperature": 1.0}])
    )
    assert dry_run(said).students[0].action == "skip"  # it is the same student


def test_dkd_too(tmp_path: Path) -> None:
    cache = counting_cache(tmp_path, counting_teacher(scale=3.0, extra=SPARSE))
    asked = request(cache, tmp_path / "runs", small_gpt(objective=[{"loss": "dkd", "teacher": "right"}]))
    assert dry_run(asked).warnings == (f"note: {NOTE.replace('kd:', 'dkd:')}",)


@pytest.mark.parametrize("loss", ["kd", "dkd"])
def test_a_temperature_that_is_said_is_left_as_it_is(loss: str, tmp_path: Path) -> None:
    cache = counting_cache(tmp_path, counting_teacher(scale=3.0, extra=SPARSE))
    term: dict[str, Any] = {"loss": loss, "teacher": "right", "temperature": 4.0}
    with pytest.raises(MissingCapability):
        dry_run(request(cache, tmp_path / "runs", small_gpt(objective=[term])))
