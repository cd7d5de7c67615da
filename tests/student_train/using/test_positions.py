"""A language model's figures, position by position: of a run, and of what was exported of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from student_train.running.train import train_students
from student_train.students import load_student, save_student
from student_train.using.exporting.models import export_model
from tests.conftest import Program
from tests.language.toys import counting_cache, counting_teacher, lines_cache, request, small_gpt

pytestmark = pytest.mark.slow
MAKERS = {"blocks": counting_cache, "own length": lines_cache}


@pytest.mark.parametrize("rows", MAKERS)
def test_an_export_of_a_language_model_has_the_figures_of_the_run(program: Program, tmp_path: Path, rows: str) -> None:
    cache = MAKERS[rows](tmp_path, counting_teacher())
    (name,) = cache.catalogue().datasets
    assert not train_students(request(cache, tmp_path / "runs", small_gpt())).errors
    run = tmp_path / "runs/gpt"
    told = export_model(run, tmp_path / "int8", "onnx", quantize="int8").told
    assert any("cross-entropy" in text for text in told), told
    export_model(run, tmp_path / "onnx", "onnx")
    of_run, of_file = (
        json.loads(program("student", "eval", place, name, "--cache", cache.url, "--json").out)
        for place in (run, tmp_path / "onnx")
    )
    assert of_run["teacher"] == of_file["teacher"] == "right"
    assert of_run["rows"] == of_file["rows"] > 0
    assert of_file["figures"] == pytest.approx(of_run["figures"], abs=1e-4)


def test_a_language_model_that_answers_with_nan_is_told_so(program: Program, tmp_path: Path) -> None:
    cache = counting_cache(tmp_path)
    (name,) = cache.catalogue().datasets
    assert not train_students(request(cache, tmp_path / "runs", small_gpt())).errors
    student = load_student(tmp_path / "runs/gpt")
    nothing = {key: torch.full_like(tensor, torch.nan) for key, tensor in student.state_dict().items()}
    save_student(tmp_path / "plain", student.blueprint, nothing, student.tokenizer)
    refused = program("student", "eval", tmp_path / "plain", name, "--cache", cache.url)
    assert refused.code == 2, refused.out
    assert "answers with NaN" in refused.err
