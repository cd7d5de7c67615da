"""Small tables of made-up texts whose class is a word in them, and teachers that find it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from storage.cache import Cache
from storage.language.tokenizer import train_tokenizer
from student_train.options.sections import DataOptions, StudentOptions
from student_train.preparing.request import Request
from tests.teacher_cache.toys import build, write_job

CLASSES = ["fish", "fowl", "plant"]
FILLER = """the of and to in a is that it was for on are as with his they at be this from have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then she many some so
""".split()  # noqa: SIM905 - read as words
LENGTH = 12

TEACHER = '''
"""A teacher that looks for the ids of three words, and is no better at padding than at any other token."""

import torch
from torch import nn


class Looking(nn.Module):
    def __init__(self, ids, scale, fault):
        super().__init__()
        self.ids = nn.Buffer(torch.tensor(ids))
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.every = nn.Identity()
        self.row = nn.Identity()
        self.fault = fault

    def forward(self, tokens, mask):
        assert tokens.dtype == torch.int64 and mask.dtype == torch.bool and tokens.shape == mask.shape
        assert (tokens >= 0).all()
        if self.fault == "per position":
            return torch.zeros(*tokens.shape, len(self.ids))
        hits = self.every((tokens[..., None] == self.ids) & mask[..., None]).float()
        return self.row(self.scale * hits.sum(1) + 0.01 * mask.sum(1, keepdim=True))


def build(ids, scale=5.0, fault=""):
    return Looking(ids, scale, fault)
'''


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return so many (class, text), of 2 to 11 words, each with the word of its class behind the first."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = draw.choices(FILLER, k=draw.randrange(1, 11))
        words.insert(draw.randrange(1, len(words) + 1), CLASSES[i % len(CLASSES)])
        rows.append((CLASSES[i % len(CLASSES)], " ".join(words)))
    return rows


def write_texts(folder: Path, count: int = 60, *, length: int = LENGTH, extra: str = "") -> str:
    """Write a table of texts and its tokenizer, one token a word; return the `[[dataset]]` of a job."""
    lines = [json.dumps({"label": label, "text": text}) for label, text in texts(count)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    (folder / "looking.py").write_text(TEACHER)
    (folder / "tokenizer.json").write_bytes(word_tokenizer())
    return (
        '[[dataset]]\nname = "texts"\nkind = "text"\npath = "texts.jsonl"\ncolumn = "text"\nlabel = "label"\n'
        f'length = {length}\ntokenizer = "tokenizer.json"\nvalidation = 0.25\nrows_per_shard = 16\n{extra}\n'
    )


def word_tokenizer() -> bytes:
    """Return a tokenizer of whole words: a learned one, which spells a word in one token after it was seen often."""
    every = " ".join([*CLASSES, *FILLER])
    return train_tokenizer([f"{every} {every}"] * 50, 600, "<|endoftext|>")


def class_ids() -> list[int]:
    """Return the id of each class's word behind a space."""
    from storage.language.tokenizer import encoder

    return [int(ids[-1]) for ids in encoder(word_tokenizer())([f"x {name}" for name in CLASSES])]


def looking_teacher(name: str = "looking", *, extra: str = "", **arguments: Any) -> str:
    """Return a `[[teacher]]` that looks for the words of the classes."""
    given = ", ".join(f"{key} = {json.dumps(value)}" for key, value in ({"ids": class_ids()} | arguments).items())
    return (
        f'[[teacher]]\nname = "{name}"\nfactory = "looking.py:build"\narguments = {{ {given} }}\n'
        f'tokenizer = "tokenizer.json"\nbatch_size = 5\n{extra}\n'
    )


def text_cache(folder: Path, *teachers: str, count: int = 60, **options: Any) -> Cache:
    """Return a cache of texts and some teachers, built in this process."""
    report = build(write_job(folder, write_texts(folder, count, **options), *(teachers or [looking_teacher()])))
    assert report.exit_code == 0, report
    return Cache.open(str(folder / "cache"))


def small_encoder(name: str = "encoder", **options: Any) -> StudentOptions:
    """Return a student of texts that trains in a moment; options replace its own."""
    defaults = {
        "name": name,
        "architecture": "encoder",
        "options": {"depth": 1, "width": 8, "heads": 2},
        "objective": [{"loss": "labels", "weight": 0.5}, {"loss": "kd", "teacher": "looking", "temperature": 2.0}],
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 0.01,
    }
    return StudentOptions.model_validate(defaults | options)


def request(cache: Cache, runs: Path, *students: StudentOptions, **data: Any) -> Request:
    """Return a request to train on the toy texts, on the CPU."""
    rows = {"train": "texts/train", "validation": "texts/validation"} | data
    return Request(cache, runs, DataOptions.model_validate(rows), students or (small_encoder(),), "cpu")
