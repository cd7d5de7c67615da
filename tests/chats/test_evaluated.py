"""A student of chats is measured on chats in files, rendered by the template that made its rows."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from storage.cache import Cache
from storage.datasets.chat import source as module
from student_train.options.sections import DataOptions
from student_train.preparing.request import Request
from student_train.running.train import train_students
from student_train.using.exporting.hub.transformers import export_transformers
from tests.chats.test_build import SECTION, chat
from tests.chats.toys import CHATML, LLAMA3, write_lines, write_model
from tests.conftest import Program
from tests.language.toys import small_gpt
from tests.teacher_cache.toys import build, write_job


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run on chats whose template prints the date, on another day than that of the build."""
    write_model(tmp_path / "model", LLAMA3)
    write_lines(tmp_path / "chats.jsonl", *(chat(number) for number in range(9)))
    monkeypatch.setattr(module, "today", lambda: datetime.date(2024, 2, 3))
    section = SECTION.replace('path = "chats"', 'path = "chats.jsonl"').replace("length = 96", "length = 256")
    job = write_job(tmp_path, section)
    assert build(job).exit_code == 0
    monkeypatch.setattr(module, "today", lambda: datetime.date(2025, 6, 7))
    rows = DataOptions.model_validate({"train": "chats/train", "validation": "chats/validation"})
    cache = Cache.open(str(tmp_path / "cache"))
    student = small_gpt(objective=[{"loss": "labels"}])
    assert not train_students(Request(cache, tmp_path / "runs", rows, (student,), "cpu")).errors
    return tmp_path / "runs/gpt"


def test_chats_in_a_file_have_the_figures_of_the_same_in_a_cache(program: Program, run: Path) -> None:
    folder = run.parent.parent
    alike = [
        json.loads(program("student", "eval", run, *asked, "--json").out)["figures"]
        for asked in (("chats",), (folder / "chats.jsonl", "--tokenizer", folder / "model"))
    ]
    assert alike[0]["cross_entropy"] == pytest.approx(alike[1]["cross_entropy"], rel=1e-6)


def test_another_template_is_refused_and_so_is_none(program: Program, run: Path) -> None:
    folder = run.parent.parent
    write_model(folder / "other", CHATML)
    for asked, found in (
        ([], "no folder of a tokenizer"),
        (["--tokenizer", folder / "other"], str(folder / "other")),
    ):
        refused = program("student", "eval", run, folder / "chats.jsonl", *asked)
        assert refused.code == 2
        assert "the chat template that made the rows of gpt is not at hand" in refused.err
        assert found in refused.err
    refused = program("student", "eval", run, "chats", "--tokenizer", folder / "model")
    assert (refused.code, "--tokenizer is of chats in files" in refused.err) == (2, True)


def test_a_template_that_did_not_make_the_rows_is_told_where_it_goes_out(run: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "other", CHATML)
    own = export_transformers(run, tmp_path / "own", tokenizer=tmp_path / "model")
    another = export_transformers(run, tmp_path / "another", tokenizer=tmp_path / "other")
    assert not any(line.startswith("warning: ") for line in own.told)
    (told,) = (line for line in another.told if line.startswith("warning: "))
    assert f"the chat template of {tmp_path / 'other'} is not the one that made the rows" in told
