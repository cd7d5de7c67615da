"""Texts whose answer is a vector: the mean of fixed vectors of their words, or what a small encoder says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from storage.cache import Cache
from storage.language.tokenizer import parse_tokenizer
from student_train.options.sections import DataOptions, StudentOptions
from student_train.preparing.request import Request
from tests.teacher_cache.toys import build, write_job
from tests.texts.toys import texts, word_tokenizer

WIDTH, LENGTH = 6, 14
EVERY_LOSS = [
    {"loss": "vector_cosine", "teacher": "bag"},
    {"loss": "vector_mse", "teacher": "bag"},
    {"loss": "vector_rkd", "teacher": "bag"},
    {"loss": "vector_similarity", "teacher": "bag"},
    {"loss": "vector_pkt", "teacher": "bag"},
    {"loss": "infonce", "teacher": "bag"},
]

TEACHER = '''
"""A teacher whose vector of a text is the mean of fixed vectors of its words."""

import torch
from torch import nn


class Bag(nn.Module):
    def __init__(self, width):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Parameter(torch.randn(600, width, generator=generator))
        self.row = nn.Identity()

    def forward(self, tokens, mask):
        weight = mask[..., None].float()
        return self.row((self.words[tokens] * weight).sum(1) / weight.sum(1))


def build(width):
    return Bag(width)


def turned(width):
    model = Bag(width)
    model.words.data.neg_()
    return model
'''


def bert_tokenizer() -> bytes:
    """Return the toy tokenizer with a template, as BERT's: special tokens before and behind a text."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_str(word_tokenizer().decode())
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    data: bytes = tokenizer.to_str().encode()
    return data


def encoder_folder(folder: Path, auto: str = "AutoModel", *, sentences: bool = True, **fields: Any) -> Path:
    """Write a small BERT with its tokenizer as sentence-transformers lays it out; return its folder."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    data = bert_tokenizer()
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.AutoConfig.for_model(
        "bert", vocab_size=parse_tokenizer(data, "toy").vocabulary, initializer_range=0.5, **sizes | fields
    )
    torch.manual_seed(0)
    getattr(transformers, auto).from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(data)
    if sentences:
        kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def vector_dataset(folder: Path, count: int = 60, *, extra: str = "") -> str:
    """Write a table of texts and its tokenizer; return the `[[dataset]]` of a job."""
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for _, text in texts(count)))
    (folder / "bag.py").write_text(TEACHER)
    (folder / "tokenizer.json").write_bytes(bert_tokenizer())
    return (
        '[[dataset]]\nname = "texts"\nkind = "text"\ntask = "vector"\npath = "texts.jsonl"\ncolumn = "text"\n'
        f'length = {LENGTH}\ntokenizer = "tokenizer.json"\nvalidation = 0.4\nrows_per_shard = 32\n{extra}\n'
    )


def bag_teacher(name: str = "bag", *, dtype: str = "fp32", width: int = WIDTH, extra: str = "") -> str:
    """Return a `[[teacher]]` whose vectors are means of its words'."""
    return (
        f'[[teacher]]\nname = "{name}"\nfactory = "bag.py:build"\narguments = {{ width = {width} }}\n'
        f'tokenizer = "tokenizer.json"\ndimension = {WIDTH}\nencoding = {{ kind = "vectors", dtype = "{dtype}" }}\n'
        f"{extra}\n"
    )


def vector_cache(folder: Path, *teachers: str, **options: Any) -> Cache:
    """Return a cache of texts with vectors of some teachers, built in this process."""
    report = build(write_job(folder, vector_dataset(folder, **options), *(teachers or [bag_teacher()])))
    assert report.exit_code == 0, report
    return Cache.open(str(folder / "cache"))


def vector_student(name: str = "small", **options: Any) -> StudentOptions:
    """Return a student that trains in a moment; options replace its own."""
    defaults = {
        "name": name,
        "architecture": "encoder",
        "options": {"depth": 0, "width": 16, "heads": 2},
        "objective": [{"loss": "vector_cosine", "teacher": "bag"}],
        "epochs": 20,
        "batch_size": 16,
        "learning_rate": 0.05,
    }
    return StudentOptions.model_validate(defaults | options)


def request(cache: Cache, runs: Path, *students: StudentOptions, **data: Any) -> Request:
    """Return a request to train on the toy texts, on the CPU."""
    rows = {"train": "texts/train", "validation": "texts/validation"} | data
    return Request(cache, runs, DataOptions.model_validate(rows), students or (vector_student(),), "cpu")
