"""The tables of inputs and tasks: what a row is made of, and what is asked of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from storage.digests import fingerprint
from storage.errors import CorruptObject, UnsupportedFormat
from storage.format.objects import LocalObjects
from storage.format.specs import DatasetSpec, read_spec
from storage.inputs import INPUTS, Inputs, inputs_of
from storage.inputs.ragged import Ragged
from storage.tasks import NO_LABEL, TASKS, Task, task_of

IMAGES: dict[str, Any] = {
    "name": "a",
    "source": {},
    "classes": ["cat", "dog"],
    "input_shape": (3, 4, 4),
    "input_dtype": "uint8",
}
BLOCKS: dict[str, Any] = {
    "name": "b",
    "source": {},
    "classes": [],
    "input_shape": (5,),
    "input_dtype": "int32",
    "vocabulary": 300,
}


@pytest.mark.parametrize(("table", "kind"), [(INPUTS, Inputs), (TASKS, Task)])
def test_a_table_finds_each_by_its_own_name(table: dict[str, Any], kind: type) -> None:
    assert {name: (entry.name, isinstance(entry, kind)) for name, entry in table.items()} == {
        name: (name, True) for name in table
    }


def test_a_task_is_asked_of_kinds_that_there_are() -> None:
    assert {kind for task in TASKS.values() for kind in task.inputs} <= INPUTS.keys()


@pytest.mark.parametrize(
    ("fields", "kind", "task"),
    [
        (IMAGES, "pixels", "image_classification"),
        (IMAGES | {"input_dtype": "float32"}, "values", "image_classification"),
        (BLOCKS, "tokens", "language_model"),
        (BLOCKS | {"uses": ("own_length",)}, "sequences", "language_model"),
        (BLOCKS | {"uses": ("own_length",), "task": "text_classification"}, "texts", "text_classification"),
    ],
)
def test_a_dataset_is_of_a_kind_and_of_a_task_that_may_be_implied(fields: dict[str, Any], kind: str, task: str) -> None:
    spec = DatasetSpec.model_validate(fields)
    assert (inputs_of(spec).name, task_of(spec).name) == (kind, task)


@pytest.mark.parametrize(("fields", "task"), [(IMAGES, "image_classification"), (BLOCKS, "language_model")])
def test_an_implied_task_is_not_written(fields: dict[str, Any], task: str) -> None:
    spec = DatasetSpec.model_validate(fields | {"task": task})
    assert spec.fingerprint == fingerprint(DatasetSpec.model_validate(fields).model_dump(mode="json"))
    assert "task" not in json.loads(spec.to_json())


def test_a_task_of_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    value = IMAGES | {"task": "segmentation"}
    (tmp_path / "a").mkdir()
    (tmp_path / "a/dataset.json").write_text(json.dumps(value | {"digest": fingerprint(value)}))
    with pytest.raises(UnsupportedFormat, match="dataset a") as caught:
        read_spec(LocalObjects(tmp_path), "a/dataset.json", DatasetSpec)
    assert caught.value.found == "task = 'segmentation'  (a/dataset.json)"


def test_a_dataset_whose_task_is_of_other_inputs_is_refused(tmp_path: Path) -> None:
    value = IMAGES | {"task": "language_model"}
    (tmp_path / "a").mkdir()
    (tmp_path / "a/dataset.json").write_text(json.dumps(value | {"digest": fingerprint(value)}))
    with pytest.raises(CorruptObject) as caught:
        read_spec(LocalObjects(tmp_path), "a/dataset.json", DatasetSpec)
    assert "task language_model is of tokens or sequences or packed, and a is pixels" in str(caught.value.found)


def test_a_model_is_called_with_floats_of_pixels_and_long_ids_of_tokens() -> None:
    assert torch.equal(INPUTS["pixels"].arguments(torch.tensor([0, 51], dtype=torch.uint8)), torch.tensor([0.0, 0.2]))
    assert torch.equal(INPUTS["tokens"].arguments(torch.tensor([7], dtype=torch.int32)), torch.tensor([7]))
    assert torch.equal(INPUTS["values"].arguments(torch.tensor([300.5])), torch.tensor([300.5]))


@pytest.mark.parametrize("name", INPUTS)
def test_a_blank_is_like_what_a_model_is_called_with(name: str) -> None:
    stored = {"pixels": torch.uint8, "values": torch.float32}.get(name, torch.int32)
    blank = INPUTS[name].blank(2, (3,), torch.device("cpu"))
    like = INPUTS[name].arguments(torch.zeros(2, 3, dtype=stored))
    assert (blank.dtype, blank.tolist()) == (like.dtype, like.tolist())


def test_only_pixels_of_images_have_views() -> None:
    having = {name for name, inputs in INPUTS.items() if inputs.has_views((3, 4, 4))}
    assert (having, INPUTS["pixels"].has_views((64,))) == ({"pixels"}, False)


def test_a_label_of_a_row_is_a_column_and_of_positions_an_array() -> None:
    table = pa.table({"label": pa.array([1, None], pa.int64())})
    stored = np.array([[3, NO_LABEL]], np.int32)
    of = {"labels": stored}.__getitem__
    found = {name: task.labels(table, of, np.array([0])).tolist() for name, task in TASKS.items()}
    assert found["image_classification"] == [1]
    assert found["language_model"] == [[3, NO_LABEL]]
    ragged = {"labels": Ragged.of([[3], [], [4, NO_LABEL]], np.int32)}.__getitem__
    chosen = TASKS["language_model"].labels(table, ragged, np.array([2, 0]))
    assert (chosen.tolist(), chosen.dtype) == ([[4, NO_LABEL], [3, NO_LABEL]], np.int64)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_labels_begin_as_none_at_each_site(task: Task) -> None:
    blank = task.blank_labels(2, (5,), INPUTS["tokens"])
    assert set(blank) == ({task.label_array} - {None})
    assert all(labels.shape == (2, *task.sites((5,))) and (labels == NO_LABEL).all() for labels in blank.values())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_each_site_has_a_key_of_its_own(task: Task) -> None:
    keys = task.site_keys(torch.tensor([5, 6]), (4,))
    assert keys.shape == (2, *task.sites((4,)))
    assert len(keys.unique()) == keys.numel()


def test_columns_of_a_block_are_means_over_its_labelled_positions() -> None:
    sites = {name: torch.tensor([[1.0, 3.0, 100.0], [1.0, 1.0, 1.0]]) for name in ("top", "entropy")}
    labels = torch.tensor([[0, 0, NO_LABEL], [NO_LABEL] * 3])
    columns = TASKS["language_model"].row_columns(sites, labels)
    assert columns["top"].tolist() == [NO_LABEL, NO_LABEL]
    assert columns["entropy"].tolist() == pytest.approx([2.0, float("nan")], nan_ok=True)
    assert columns["labelled"].tolist() == [2, 0]


def test_a_position_without_a_label_counts_nothing_even_where_the_class_in_its_place_can_never_be() -> None:
    sites = {"top": torch.tensor([[1, 1]]), "label_log_probability": torch.tensor([[-1.0, -torch.inf]])}
    columns = TASKS["language_model"].row_columns(sites, torch.tensor([[0, NO_LABEL]]))
    assert columns["label_log_probability"].tolist() == [-1.0]


def test_a_row_without_a_label_has_no_probability_of_it() -> None:
    sites = {"top": torch.tensor([4, 5]), "label_log_probability": torch.tensor([-1.0, -2.0])}
    columns = TASKS["image_classification"].row_columns(sites, torch.tensor([4, NO_LABEL]))
    assert columns["top"].tolist() == [4, 5]
    assert columns["label_log_probability"].tolist() == pytest.approx([-1.0, float("nan")], nan_ok=True)


def test_the_tables_are_read_without_torch() -> None:
    code = "import sys, storage.tasks, storage.inputs, storage.format.specs; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
