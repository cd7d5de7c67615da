"""Small caches of tokens, built and trained on as a user would, and teachers of a few numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from storage.cache import Cache
from student_train.options.sections import DataOptions, StudentOptions
from student_train.preparing.request import Request
from tests.teacher_cache.toys import build, write_job

IDS = 10  # of the counting language, whose documents are 0, 1, …, 8, and whose next token is a function of the last
END = 9

TEACHERS = '''
"""Models of the counting language 0, 1, …, 9, 0, 1, …: each is as sure of `token + step` as `scale` says."""

import torch
from torch import nn


class Counting(nn.Module):
    def __init__(self, ids, step, scale, padding, fault):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.ids, self.step, self.padding, self.fault = ids, step, padding, fault
        self.said = nn.Identity()

    def forward(self, tokens):
        assert tokens.dtype == torch.int64
        following = (tokens + self.step) % self.ids
        logits = self.said(self.scale * nn.functional.one_hot(following, self.ids + self.padding).float())
        if self.fault == "flat":
            return logits[:, -1]
        if self.fault == "short":
            return logits[:, :-1]
        if self.fault == "object":
            return type("Output", (), {"logits": logits})()
        if self.fault == "padding at -inf":
            logits[..., self.ids :] = -torch.inf
        return logits


def build(ids=10, step=1, scale=60.0, padding=0, fault=""):
    return Counting(ids, step, scale, padding, fault)


def student(num_classes, input_shape, *, step=1, scale=60.0):
    return Counting(num_classes, step, scale, 0, "")
'''


def write_counting(folder: Path, rows: int = 20, length: int = 12) -> str:
    """Write a stream of the counting language; return the `[[dataset]]` of a job."""
    np.save(folder / "counting.npy", (np.arange(rows * length) % IDS).astype(np.uint16))
    (folder / "counting.py").write_text(TEACHERS)
    return (
        f'[[dataset]]\nname = "counting"\nkind = "tokens"\npath = "counting.npy"\nvocabulary = {IDS}\n'
        f"block = {length}\n"
        f"end_of_text = {END}\nvalidation = 0.25\nrows_per_shard = 6\n"
    )


LINES = '''
"""Lines of the counting language, each at its own length: the first third of a line is a prompt."""

import numpy as np


class Lines:
    vocabulary = 10

    def __init__(self, rows, longest, padded):
        self.rows, self.most, self.padded = rows, longest, padded
        if not padded:
            self.longest = longest

    def __len__(self):
        return self.rows

    def __getitem__(self, i):
        length = 2 + 7 * i % (self.most - 1)
        ids = (i + np.arange(length + 1)) % 10
        labels = np.where(np.arange(length) < length // 3, -1, ids[1:])
        ids = ids[:-1]
        if self.padded:
            ids, labels = (np.pad(x, (0, self.most - length), constant_values=v) for x, v in ((ids, 0), (labels, -1)))
        return {"input": ids, "labels": labels, "id": f"line {i}"}


def build(rows=40, longest=12, padded=False):
    return Lines(rows, longest, padded)
'''


def write_lines(folder: Path, *, padded: bool = False, rows: int = 40) -> str:
    """Write lines of the counting language at their own lengths, 2 to 12; return the `[[dataset]]` of a job."""
    (folder / "counting.py").write_text(TEACHERS)
    (folder / "lines.py").write_text(LINES)
    return (
        '[[dataset]]\nname = "counting"\nkind = "factory"\nfactory = "lines.py:build"\n'
        f"arguments = {{ rows = {rows}, padded = {str(padded).lower()} }}\nvalidation = 0.25\nrows_per_shard = 7\n"
    )


def lines_cache(folder: Path, *teachers: str, **options: Any) -> Cache:
    """Return a cache of lines of the counting language and some teachers, built in this process."""
    folder.mkdir(exist_ok=True)
    report = build(write_job(folder, write_lines(folder, **options), *teachers))
    assert report.exit_code == 0, report
    return Cache.open(str(folder / "cache"))


def counting_teacher(name: str = "right", *, extra: str = "", **arguments: Any) -> str:
    """Return a `[[teacher]]` of the counting language."""
    given = ", ".join(f"{key} = {value!r}" for key, value in arguments.items()).replace("'", '"')
    return f'[[teacher]]\nname = "{name}"\nfactory = "counting.py:build"\narguments = {{ {given} }}\n{extra}\n'


def counting_cache(folder: Path, *teachers: str, **options: Any) -> Cache:
    """Return a cache of the counting language and some teachers, built in this process."""
    report = build(write_job(folder, write_counting(folder, **options), *(teachers or [counting_teacher()])))
    assert report.exit_code == 0, report
    return Cache.open(str(folder / "cache"))


def small_gpt(name: str = "gpt", **options: Any) -> StudentOptions:
    """Return a transformer that trains in a moment; options replace its own."""
    defaults = {
        "name": name,
        "architecture": "gpt",
        "options": {"depth": 1, "width": 8, "heads": 2, "end_of_text": END},
        "objective": [{"loss": "labels", "weight": 0.5}, {"loss": "kd", "teacher": "right", "temperature": 2.0}],
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.01,
    }
    return StudentOptions.model_validate(defaults | options)


def request(cache: Cache, runs: Path, *students: StudentOptions, **data: Any) -> Request:
    """Return a request to train on the counting language, on the CPU."""
    rows = {"train": "counting/train", "validation": "counting/validation"} | data
    return Request(cache, runs, DataOptions.model_validate(rows), students or (small_gpt(),), "cpu")
