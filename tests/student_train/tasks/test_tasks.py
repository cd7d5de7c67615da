"""The students' half of the tasks, and what a blueprint says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pydantic import ValidationError

from storage.errors import BadRequest, BadWeights
from storage.format.objects import LocalObjects
from storage.format.sealed import seal
from storage.tasks import TASKS as STORED
from student_train.preparing.weighing.step_memory import LOSS
from student_train.report.caches import FIRST
from student_train.report.contents import BREAKDOWNS
from student_train.report.gallery import CARDS
from student_train.run_files.predictions import read_predictions
from student_train.run_files.predictions_file import PREDICTIONS_FILE
from student_train.running.measuring.evaluate import MEASURES
from student_train.stepping.gradients.ways import WAYS
from student_train.stepping.stack.step import OVER
from student_train.students import Blueprint, build_student, load_student, save_student
from student_train.tasks import TASKS, StudentTask, task_of
from student_train.tasks.held import HELD_SCHEMA, STUDENT_SCHEMA, TEACHER_SCHEMA
from tests.damage import edit_json

IMAGES: dict[str, Any] = {"architecture": "mlp", "num_classes": 4, "input_shape": (6,), "mean": (0.5,), "std": (0.5,)}
GPT: dict[str, Any] = {
    "architecture": "gpt",
    "options": {"depth": 1, "width": 8, "heads": 2},
    "num_classes": 9,
    "input_shape": (12,),
    "mean": None,
    "std": None,
}


def test_every_task_has_both_halves() -> None:
    assert {name: task.asked.name for name, task in TASKS.items()} == {name: name for name in STORED}


@pytest.mark.parametrize("table", [WAYS, OVER, LOSS, FIRST], ids=["alone", "stacked", "memory", "cache"])
def test_whatever_steps_or_measures_knows_every_way(table: dict[str, Any]) -> None:
    assert {task.way for task in TASKS.values()} <= table.keys()


def test_every_task_has_figures() -> None:
    assert {task.figures for task in TASKS.values()} == MEASURES.keys()


def test_the_report_knows_what_every_task_shows() -> None:
    assert {task.report.mistakes for task in TASKS.values()} <= CARDS.keys()
    assert {task.report.breakdown for task in TASKS.values()} <= BREAKDOWNS.keys()


@pytest.mark.parametrize(
    ("fields", "inputs", "task"),
    [
        (IMAGES, "pixels", "image_classification"),
        (IMAGES | {"inputs": "values"}, "values", "image_classification"),
        (GPT, "tokens", "language_model"),
        (GPT | {"task": "text_classification"}, "tokens", "text_classification"),
    ],
)
def test_a_blueprint_says_what_its_rows_are_and_what_is_asked_of_them(
    fields: dict[str, Any], inputs: str, task: str
) -> None:
    blueprint = Blueprint(**fields)
    assert (blueprint.made_of.name, task_of(blueprint).asked.name) == (inputs, task)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (IMAGES | {"inputs": "pixels", "task": "image_classification"}, IMAGES),
        (GPT | {"inputs": "tokens", "task": "language_model"}, GPT),
    ],
)
def test_what_is_implied_is_not_said(fields: dict[str, Any], said: dict[str, Any]) -> None:
    assert Blueprint(**fields) == Blueprint(**said)
    assert Blueprint(**fields).model_dump().keys().isdisjoint({"inputs", "task"})


@pytest.mark.parametrize("unknown", [{"inputs": "sounds"}, {"task": "segmentation"}])
def test_a_blueprint_of_what_is_not_known_here_is_refused_by_name(unknown: dict[str, str]) -> None:
    (name,) = unknown.values()
    with pytest.raises(ValidationError, match=name):
        Blueprint(**IMAGES, **unknown)


def test_a_student_of_values_is_loaded_as_one(tmp_path: Path) -> None:
    blueprint = Blueprint(**IMAGES, inputs="values")
    save_student(tmp_path, blueprint, build_student(blueprint).state_dict())
    assert load_student(tmp_path).blueprint.made_of.name == "values"


def test_a_file_of_a_student_of_a_later_task_is_refused(tmp_path: Path) -> None:
    blueprint = Blueprint(**IMAGES)
    save_student(tmp_path, blueprint, build_student(blueprint).state_dict())
    edit_json(tmp_path / "student.json", task="segmentation")
    with pytest.raises(BadWeights, match="describes no student") as caught:
        load_student(tmp_path)
    assert "segmentation" in str(caught.value.found)


def test_only_a_student_that_answers_at_several_sites_is_used_in_two_parts() -> None:
    assert build_student(Blueprint(**GPT)).in_two_parts
    assert not build_student(Blueprint(**GPT, task="text_classification")).in_two_parts


@pytest.mark.parametrize("fields", [IMAGES, GPT], ids=["image", "text"])
def test_a_student_answers_a_row_once(fields: dict[str, Any]) -> None:
    student = build_student(Blueprint(**fields)).eval()
    inputs = student.blank(3, student.blueprint.input_shape)
    with torch.no_grad():
        answers, logits = task_of(student.blueprint).answer(student, inputs), student(inputs)
    assert answers.shape == (3, student.blueprint.num_classes)
    assert torch.allclose(answers, logits.reshape(3, -1, student.blueprint.num_classes)[:, -1], atol=1e-6)


def test_losses_that_compare_rows_are_refused_of_positions_alone() -> None:
    TASKS["image_classification"].refuse_coupling("a", "digits", ["rkd"])
    with pytest.raises(BadRequest, match="losses that compare rows") as caught:
        TASKS["language_model"].refuse_coupling("a", "books", ["rkd"])
    assert (caught.value.found, caught.value.do) == ("rkd", "choose other losses")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_predictions_that_said_whether_rows_are_tokens_are_still_read(tmp_path: Path, task: StudentTask) -> None:
    schema = HELD_SCHEMA | task.site_schema | TEACHER_SCHEMA | STUDENT_SCHEMA
    about = {"cache": "c", "dataset": "d", "teacher": None, "of_tokens": bool(task.site_schema), "num_rows": 0}
    data = seal(pl.DataFrame(schema=schema).to_arrow(), {"format_version": 1, **about})
    LocalObjects(tmp_path).put(PREDICTIONS_FILE, data)
    found = read_predictions(tmp_path)
    assert found is not None
    assert found.task == ("language_model" if task.site_schema else "image_classification")
    assert found.table.columns == list(schema)
