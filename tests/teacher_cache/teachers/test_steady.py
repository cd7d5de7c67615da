"""A teacher has one answer for each row, or it is refused before anything of it is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.errors import BadTeacher
from teacher_cache.teachers.loading import cached_teacher, load_teacher
from tests.teacher_cache.toys import build, write_job

DATASET = '[[dataset]]\nname = "d"\nkind = "arrays"\npath = "x.npy"\nclasses = ["a", "b"]\nrows_per_shard = 16\n'
FACTORIES = """
import random
import numpy, torch
from torch.nn import functional as F

class Model(torch.nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(8.0).view(2, 4) - 3)
            self.linear.bias.zero_()
        self.norm = torch.nn.BatchNorm1d(4)
        self.calls = torch.nn.Buffer(torch.zeros(1))
        self.seen, self.body = 0, forward
    def forward(self, x):
        return self.body(self, x.flatten(1))

def make(forward):
    return lambda: Model(forward)

def training(self, x):
    return F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)

def counted(self, x):
    self.calls += 1
    return self.linear(x)

def remembered(self, x):
    self.seen += 1
    return self.linear(x) + self.seen

def seldom(self, x):
    return self.linear(x) + float(random.random() < 0.4)

honest = make(lambda self, x: self.linear(x))
dropout = make(lambda self, x: self.linear(F.dropout(x, 0.5)))
noise = make(lambda self, x: self.linear(x + torch.randn_like(x)))
by_numpy = make(lambda self, x: self.linear(x) * float(numpy.random.rand()))
by_python = make(seldom)
counter = make(counted)
memory = make(remembered)
batch_norm = make(lambda self, x: self.linear(training(self, x)))
batch_statistics = make(lambda self, x: self.linear((x - x.mean(0)) / (x.std(0, correction=0) + 1e-3)))
idle_draws = make(lambda self, x: (torch.rand(1), self.linear(x))[1])
"""
AGAIN = "teacher t has another answer each time that it is asked about the same rows"
BUFFERS = "teacher t changes its own buffers while it answers"
BESIDE = "teacher t answers about a row by the rows that are beside it in a batch"


def built(folder: Path, function: str) -> int:
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.integers(0, 255, (16, 1, 2, 2), dtype=np.uint8))
    (folder / "t.py").write_text(FACTORIES)
    cached_teacher.cache_clear()
    return build(write_job(folder, DATASET, f'[[teacher]]\nname = "t"\nfactory = "t.py:{function}"\n')).exit_code


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ("dropout", AGAIN),
        ("noise", AGAIN),
        ("by_numpy", AGAIN),
        ("by_python", AGAIN),
        ("memory", AGAIN),
        ("counter", BUFFERS),
        ("batch_norm", BUFFERS),
        ("batch_statistics", BESIDE),
    ],
)
def test_a_teacher_without_one_answer_for_each_row_is_refused_before_anything_is_stored(
    tmp_path: Path, function: str, what: str
) -> None:
    with pytest.raises(BadTeacher) as caught:
        built(tmp_path, function)
    assert caught.value.what == what
    assert caught.value.do is not None
    assert not list((tmp_path / "cache/d/t").glob("**/*.parquet"))


@pytest.mark.parametrize("function", ["honest", "idle_draws"])
def test_a_teacher_with_one_answer_for_each_row_is_asked(tmp_path: Path, function: str) -> None:
    assert built(tmp_path, function) == 0


def test_names_of_buffers_that_change_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadTeacher) as caught:
        built(tmp_path, "counter")
    assert caught.value.found == "calls"


def test_a_dry_run_tries_a_teacher_without_values(tmp_path: Path) -> None:
    built(tmp_path, "honest")
    (options,) = read_job(tmp_path / "job.toml", CacheJob).teacher
    teacher = load_teacher(options, torch.device("meta"))
    blank = torch.zeros(4, 1, 2, 2, dtype=torch.uint8, device="meta")
    logits, _ = teacher(blank, Cache.open(str(tmp_path / "cache")).dataset("d"))
    assert tuple(logits.shape) == (4, 2)
