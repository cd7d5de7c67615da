"""Students of tokens from start to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.cache import Cache
from storage.errors import BadRequest
from student_train.run_files.records import RunRecord
from student_train.running.train import train_students
from student_train.stepping.forward import check_student
from student_train.students import Blueprint, build_student, load_student
from tests.language.toys import counting_cache, counting_teacher, request, small_gpt
from tests.student_train.toys import train_in_parts


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return counting_cache(tmp_path_factory.mktemp("counting"), rows=40)


def trained(cache: Cache, runs: Path, **options: Any) -> RunRecord:
    data = options.pop("data", {})
    summary = train_students(request(cache, runs, small_gpt(**options), **data))
    for error in summary.errors.values():
        raise error
    return summary.records[0]


def weights(runs: Path) -> bytes:
    return (runs / "gpt/student.safetensors").read_bytes()


def test_a_transformer_learns_to_count(cache: Cache, tmp_path: Path) -> None:
    record = trained(cache, tmp_path, epochs=60)
    assert record.accuracy == 1.0
    assert record.cross_entropy is not None
    assert record.cross_entropy < 0.1


@pytest.mark.parametrize("options", [{}, {"objective": [{"loss": "kd", "teacher": "right"}]}])
def test_streamed_and_resident_rows_train_the_same_student(cache: Cache, tmp_path: Path, options: Any) -> None:
    for residency in ("device", "stream"):
        trained(cache, tmp_path / residency, data={"residency": residency}, **options)
    assert weights(tmp_path / "device") == weights(tmp_path / "stream")


def test_a_student_stopped_at_any_step_ends_in_the_same_weights(cache: Cache, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "options": {"depth": 1, "width": 8, "heads": 2, "dropout": 0.2},
        "ema_decay": 0.9,
        "clip_norm": 1.0,
        "patience_epochs": 2,
    }
    trained(cache, tmp_path / "whole", **options)
    runs = tmp_path / "parts"
    assert train_in_parts(request(cache, runs, small_gpt(**options), residency="stream"), calls=5) > 3
    assert weights(runs) == weights(tmp_path / "whole")


@pytest.mark.slow
def test_kills_one_after_another_still_end_in_the_same_weights(cache: Cache, tmp_path: Path) -> None:
    student = small_gpt(checkpoint_every_steps=3)
    trained(cache, tmp_path / "whole", checkpoint_every_steps=3)
    arguments = [cache.url, str(tmp_path / "killed"), student.model_dump_json(), "23", "one", "counting"]
    command = [sys.executable, "-m", "tests.student_train.killer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_the_student_carries_its_tokens_and_not_a_normalisation(cache: Cache, tmp_path: Path) -> None:
    trained(cache, tmp_path)
    spec = json.loads((tmp_path / "gpt/student.json").read_text())
    assert (spec["mean"], spec["std"], spec["tokenizer"], spec["num_classes"]) == (None, None, None, 10)
    blueprint = load_student(tmp_path / "gpt").blueprint
    assert (blueprint.made_of.name, blueprint.asked.name) == ("tokens", "language_model")


def test_a_trained_student_is_a_teacher(cache: Cache, tmp_path: Path) -> None:
    trained(cache, tmp_path / "runs", epochs=60)
    folder = tmp_path / "again"
    folder.mkdir()
    section = f'[[teacher]]\nname = "right"\nstudent = "{tmp_path / "runs/gpt"}"\nbatch_size = 5\n'
    record = trained(counting_cache(folder, section, rows=40), folder / "runs", objective=[KD_ALONE], epochs=60)
    assert record.accuracy == 1.0


KD_ALONE = {"loss": "kd", "teacher": "right", "temperature": 1.0}


def test_a_normalisation_of_tokens_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="normalises its inputs"):
        trained(cache, tmp_path, mean=[0.4], std=[0.5])


def test_a_network_that_is_no_transformer_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot take inputs"):
        trained(cache, tmp_path, architecture="mlp", options={})


BETWEEN = """
from torch import nn


class Odd(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.head = nn.Embedding(classes, 4), nn.Linear(4, classes)

    def forward(self, tokens):
        return self.head(self.body(tokens).tanh()) * 2


def odd(num_classes, input_shape):
    return Odd(num_classes)
"""


def test_a_network_that_is_more_than_its_body_and_head_is_refused(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(BETWEEN)
    with pytest.raises(BadRequest, match="more than its `body` and its `head`"):
        trained(cache, tmp_path, architecture=f"{tmp_path / 'odd.py'}:odd", options={})


def test_batch_norm_in_a_head_is_refused(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from collections import OrderedDict\n"
        "from torch import nn\n"
        "def coupled(num_classes, input_shape):\n"
        "    head = nn.Sequential(nn.Linear(4, num_classes), nn.BatchNorm1d(12))\n"
        "    return nn.Sequential(OrderedDict(body=nn.Embedding(num_classes, 4), head=head))\n"
    )
    with pytest.raises(BadRequest, match="compares positions with each other") as refused:
        trained(cache, tmp_path, architecture=f"{tmp_path / 'odd.py'}:coupled", options={})
    assert "head.1" in str(refused.value)


@pytest.mark.parametrize("layer", ["network.head", "network.body.positions", "network.body.blocks"])
def test_a_layer_that_is_not_run_is_no_layer_to_learn_from(cache: Cache, layer: str) -> None:
    spec = Blueprint(
        architecture="gpt",
        options={"depth": 1, "width": 8, "heads": 2},
        num_classes=10,
        input_shape=(12,),
        mean=None,
        std=None,
    )
    with pytest.raises(BadRequest, match=f"does not run its layer '{layer}'"):
        check_student(build_student(spec), [layer], (12,), 10)


def test_a_student_of_more_than_all_memory_is_refused_before_it_is_built(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="of weights alone"):
        trained(cache, tmp_path, options={"depth": 20, "width": 40_000, "heads": 4})


def test_padding_of_a_teachers_vocabulary_is_no_class_of_its_student(tmp_path: Path) -> None:
    padded = counting_cache(tmp_path, counting_teacher(padding=6, scale=3.0), rows=40)
    assert padded.teacher("counting", "right").num_classes == 10
    num_labels = int((padded.read_labels("counting", 0) >= 0).sum())
    assert padded.read_targets("counting", "right", 0)["logits"].shape == (num_labels, 10)
    assert trained(padded, tmp_path / "runs").status == "finished"
