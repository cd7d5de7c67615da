"""Mistakes that once ended in a message of Python's own, or in one that told the same twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from storage.cache.query import query_samples
from storage.errors import BadRequest
from storage.inputs.policy import MOST_ROW_BYTES, ImagePolicy
from student_train.students import Blueprint, build_student
from tests.conftest import Program
from tests.student_train.toys import Recipe, write_cache


def built(architecture: str, **options: Any) -> None:
    about: dict[str, Any] = {"architecture": architecture, "options": options, "num_classes": 4}
    build_student(Blueprint(**about, input_shape=(3, 16, 16), mean=(0.5,), std=(0.5,)))


@pytest.mark.parametrize(
    ("architecture", "options", "found"),
    [
        ("cnn", {"widths": "8"}, "widths = '8'"),
        ("cnn", {"widths": 8}, "widths = 8"),
        ("cnn", {"widths": ["8"]}, "widths = ['8']"),
        ("mlp", {"hidden": "32"}, "hidden = '32'"),
        ("mlp", {"dropout": "0.5"}, "dropout = '0.5'"),
        ("resnet", {"depth": [8]}, "depth = [8]"),
    ],
)
def test_an_option_of_another_type_is_named(architecture: str, options: dict[str, Any], found: str) -> None:
    with pytest.raises(BadRequest) as refused:
        built(architecture, **options)
    assert refused.value.what == f"architecture {architecture!r} does not take this option"
    assert refused.value.found == found


def test_options_of_their_types_are_taken() -> None:
    built("cnn", widths=[4, 8])
    built("cnn", widths=(4, 8), dropout=0)
    built("resnet", depth=8, width=4)


@pytest.mark.parametrize(("program_name", "command"), [("cache", "build"), ("student", "train")])
def test_a_folder_in_place_of_a_job_is_called_one(
    program_name: str, command: str, program: Program, tmp_path: Path
) -> None:
    ended = program(program_name, command, tmp_path)
    assert ended.code == 2
    text = " ".join(ended.err.split())
    assert "it is a folder" in text
    assert "Is a directory: " not in text


def test_a_size_that_no_machine_decodes_is_refused_before_the_first_file() -> None:
    with pytest.raises(ValidationError, match=r"`size` makes a row of .* at most"):
        ImagePolicy(size=100_000)
    assert ImagePolicy(size=[1, 100_000]).shape(()) == (3, 1, 100_000)
    assert ImagePolicy(size=4096).size == 4096
    assert MOST_ROW_BYTES > 3 * 4096**2


def test_a_missing_column_is_told_once_with_the_columns_that_there_are(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(rows=10))
    with pytest.raises(BadRequest) as refused:
        query_samples(cache, "select labell from samples")
    error = refused.value
    assert str(error).count("sage_top_probability") == 1
    assert error.found == 'unable to find column "labell"'
    assert error.do == "perhaps label or label_name"
