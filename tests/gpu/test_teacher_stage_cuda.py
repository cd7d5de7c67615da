"""A teacher's stage on a CUDA device: run where one is, skipped with a reason elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.encodings import DenseEncoding, FeatureEncoding
from storage.format.shards import ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec
from storage.inputs.arguments import to_float
from storage.views import PLAIN
from teacher_cache.teachers.model import Teacher
from teacher_cache.teachers.options import TeacherOptions
from teacher_cache.work.answering import answer_rows, send_ahead
from teacher_cache.work.batch import Question, ShardAnswers
from tests.teacher_cache.toys import run_program, teacher_section, write_digits, write_job, write_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS, CLASSES = 300, 10
LOCAL = 'kind = "local"'


def spec_of(**fields: Any) -> DatasetSpec:
    given = {"input_shape": (1, 8, 8), "input_dtype": "uint8", "classes": [str(i) for i in range(CLASSES)]}
    return DatasetSpec(name="d", source={"kind": "digits"}, **(given | fields))


def question() -> Question:
    torch.manual_seed(0)
    shown = torch.randint(0, 255, (ROWS, 1, 8, 8), dtype=torch.uint8)
    return Question(shown, torch.arange(ROWS) % CLASSES, torch.arange(ROWS))


def toy(folder: Path, device: str, **told: Any) -> Teacher:
    options = {"name": "toy", "factory": "toy.py:build", "batch_size": 32, **told}
    return Teacher(TeacherOptions.model_validate(options), write_teacher(folder), torch.device(device))


def answers(teacher: Teacher, asked: Question, features: dict[str, FeatureEncoding], *, beside: bool) -> ShardAnswers:
    spec = TeacherSpec(name="toy", model={}, num_classes=CLASSES, encoding=DenseEncoding(), features=features)
    return answer_rows(teacher, asked, spec, spec_of(), beside=beside)


def test_every_byte_is_the_same_float_as_on_a_cpu() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_float(pixels.cuda()).cpu(), to_float(pixels))


def test_a_teacher_on_a_gpu_is_given_the_very_inputs_of_one_on_a_cpu(tmp_path: Path) -> None:
    seen: dict[str, torch.Tensor] = {}
    for device in ("cpu", "cuda"):
        teacher = toy(tmp_path, device, mean=[0.4914], std=[0.2470])
        teacher.model.register_forward_pre_hook(
            lambda _, inputs, device=device: seen.setdefault(device, inputs[0].clone())
        )
        teacher(question().shown[:32], spec_of())
    assert torch.equal(seen["cuda"].cpu(), seen["cpu"])


def test_rows_that_are_sent_ahead_are_the_same_rows() -> None:
    asked = question()
    sent = send_ahead(asked, spec_of(), "cuda")
    assert [values.is_cuda for values in sent] == [True, False, False]  # the host must know which sites are answered
    rows = torch.tensor([5, 3, 200])
    for here, there in zip(asked.of(rows), sent.of(rows), strict=True):
        assert torch.equal(there.cpu(), here)
    assert torch.equal(sent.shown.cpu(), asked.shown)


def test_rows_of_their_own_length_stay_on_the_host_until_they_are_cut() -> None:
    spec = spec_of(input_shape=(9,), input_dtype="int32", vocabulary=50, uses=("own_length",))
    asked = Question(torch.randint(0, 50, (4, 9), dtype=torch.int32), torch.zeros(4).long(), torch.arange(4))
    sent = send_ahead(asked, spec, "cuda")
    assert [values.is_cuda for values in sent] == [False, False, False]


def test_a_thread_that_encodes_beside_the_teacher_gives_the_same_answers(tmp_path: Path) -> None:
    features = {"conv": FeatureEncoding(layer="conv"), "act": FeatureEncoding(layer="act", pool="mean")}
    teacher = toy(tmp_path, "cuda", features=features)
    found = [
        answers(teacher, send_ahead(question(), spec_of(), "cuda"), features, beside=beside)
        for beside in (False, True, True, True)
    ]
    for each in found[1:]:
        for one, other in zip(found[0], each, strict=True):
            for name in one:
                torch.testing.assert_close(other[name], one[name], msg=name)
    on_cpu = answers(toy(tmp_path, "cpu", features=features), question(), features, beside=False)
    torch.testing.assert_close(found[1].encoded["logits"], on_cpu.encoded["logits"], atol=1e-2, rtol=1e-2)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_on_the_device_is_asked_about_in_halves(tmp_path: Path) -> None:
    """A single row takes 64 MiB, and the device has room for some of a batch of 64."""
    code = """
import sys, torch
from pathlib import Path
from tests.gpu.test_teacher_stage_cuda import CLASSES, answers, question
from teacher_cache.teachers.model import Teacher
from teacher_cache.teachers.options import TeacherOptions

class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(64, CLASSES)
    def forward(self, x):
        wide = x.flatten(1).repeat(1, 2**18)
        return self.head(wide[:, :64])

torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
options = TeacherOptions.model_validate({"name": "wide", "factory": "w.py:build", "batch_size": 64})
teacher = Teacher(options, Wide(), torch.device("cuda"))
found = answers(teacher, question(), {}, beside=True)
print(teacher.batch_size, len(found.encoded["logits"]))
"""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    batch_size, rows = map(int, done.stdout.split())
    assert rows == ROWS
    assert 1 <= batch_size <= 16


TELLING = """
import json, os
from pathlib import Path

import torch
from toy import build as plain

HERE = Path(__file__).parent

def build():
    told = {"pid": os.getpid(), "device": os.environ.get("CUDA_VISIBLE_DEVICES"), "count": torch.cuda.device_count()}
    (HERE / f"loaded-{os.getpid()}.json").write_text(json.dumps(told))
    return plain()
"""


@pytest.mark.slow
def test_a_build_loads_a_teacher_once_a_gpu_and_its_peak_is_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_teacher(tmp_path)
    (tmp_path / "telling.py").write_text(TELLING)
    teacher = teacher_section().replace("toy.py:build", "telling.py:build")
    job = write_job(tmp_path, write_digits(tmp_path, 1024, rows_per_shard=32), teacher, cluster=LOCAL)
    planned = json.loads(run_program("cache", "build", job, "--dry-run", "--json").stdout)
    assert planned["gpu_memory_bytes"] > 0
    assert planned["worker_memory_bytes"] > 2**20
    for path in tmp_path.glob("loaded-*.json"):  # of the dry run itself
        path.unlink()
    ended = run_program("cache", "build", job, "--json")
    assert ended.returncode == 0, ended.stderr
    told = [json.loads(path.read_text()) for path in tmp_path.glob("loaded-*.json")]
    assert len(told) == torch.cuda.device_count()
    assert {each["count"] for each in told} == {1}
    assert len({each["device"] for each in told}) == len(told)
    cache = Cache.open(str(tmp_path / "cache"))
    about = cache.commit(ShardKey("digits", "toy", PLAIN, 0)).about
    assert about["device"] == torch.cuda.get_device_name()
    on_cpu = write_job(tmp_path, write_digits(tmp_path, 1024, rows_per_shard=32), teacher, cache="cpu")
    assert run_program("cache", "build", on_cpu, "--device", "cpu").returncode == 0
    for shard in range(32):
        ours, theirs = (
            Cache.open(str(tmp_path / name)).read_targets("digits", "toy", shard, names=["logits"])["logits"]
            for name in ("cache", "cpu")
        )
        assert np.allclose(ours, theirs, atol=1e-2, rtol=1e-2)
