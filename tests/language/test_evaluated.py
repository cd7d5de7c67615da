"""A language model is measured outside of training as in it: perplexity, and a cached teacher at each position."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from student_train.run_files.records import read_record
from student_train.running.train import train_students
from tests.conftest import Program
from tests.language.toys import counting_cache, request, small_gpt


def test_held_rows_have_the_figures_of_training(program: Program, tmp_path: Path) -> None:
    cache = counting_cache(tmp_path, length=12)
    assert not train_students(request(cache, tmp_path / "runs", small_gpt())).errors
    record = read_record(tmp_path / "runs/gpt")
    assert record is not None
    assert record.kl is not None
    found = json.loads(program("student", "eval", tmp_path / "runs/gpt", "counting/validation", "--json").out)
    for name in ("accuracy", "cross_entropy", "perplexity", "agreement", "kl"):
        assert found["figures"][name] == pytest.approx(getattr(record, name), rel=1e-6), name
    assert (found["teacher"], found["classes"]) == ("right", None)
    assert "perplexity " in program("student", "eval", tmp_path / "runs/gpt", "counting/validation").out
    refused = program("student", "eval", tmp_path / "runs/gpt", "counting/validation", "--only-known")
    assert (refused.code, "gpt, whose answers are no classes with a name" in refused.err) == (2, True)
