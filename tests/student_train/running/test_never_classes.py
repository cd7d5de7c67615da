"""Teachers that say of a class that it can never be, from the build of a cache to the first step of a student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from storage.cache import Cache
from storage.cache.verify import verify
from storage.encodings.base import USES_NEVER
from storage.errors import BadRequest, MissingCapability
from storage.format.committing import read_arrays
from storage.format.shards import ShardKey
from storage.views import PLAIN
from student_train.preparing.prepare import prepare
from student_train.running.train import train_students
from tests.conftest import Program
from tests.student_train.toys import LABELS, request_of, student
from tests.teacher_cache.toys import build, write_job

TEACHER = """
import torch
from torch import nn
class Masked(nn.Module):
    def __init__(self, word, masked):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(4.0))
        self.word, self.masked = float(word), masked
    def forward(self, x):
        logits = self.weight * (x.flatten(1)[:, :4] - 0.5)
        return logits.index_fill(1, torch.tensor(self.masked), self.word)
def build(word="-inf", masked=(2,)): return Masked(word, list(masked))
"""


def job_of(folder: Path, encoding: str, word: str = "-inf", masked: str = "[2]", cache: str = "cache") -> Path:
    if not (folder / "rows.npz").exists():
        pixels = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8)).astype(np.uint8)
        np.savez(folder / "rows.npz", inputs=pixels, labels=np.arange(24) % 2)
        (folder / "masked.py").write_text(TEACHER)
    dataset = (
        '[[dataset]]\nname = "rows"\nkind = "arrays"\npath = "rows.npz"\nclasses = ["a", "b", "c", "d"]\n'
        "rows_per_shard = 8\nvalidation = 0.25\n"
    )
    teacher = (
        f'[[teacher]]\nname = "big"\nfactory = "masked.py:build"\nencoding = {encoding}\n'
        f'arguments = {{ word = "{word}", masked = {masked} }}\n'
    )
    return write_job(folder, dataset, teacher, cache=cache)


@pytest.mark.parametrize("word", ["-inf", "-1e4", "-3.4e38"])
@pytest.mark.parametrize(
    "encoding", ['{ dtype = "fp32" }', '{ dtype = "fp16" }', '{ dtype = "int8" }', '{ kind = "sparse", k = 4 }']
)
def test_what_can_never_be_is_built_verified_and_trained_on(tmp_path: Path, encoding: str, word: str) -> None:
    assert build(job_of(tmp_path, encoding, word)).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    commit = cache.commit(ShardKey("rows", "big", PLAIN, 0))
    has_room = {"fp32": word != "-inf", "fp16": word == "-1e4"}
    says_so = "sparse" not in encoding and not any(name in encoding and kept for name, kept in has_room.items())
    assert commit.uses == (USES_NEVER,) * says_so
    assert commit.about["answered"]["never"] == 8
    assert not verify(cache).bad
    entropy = cache.samples().of("rows", ["big"])["big_entropy"]
    assert entropy.is_finite().all()
    kd = {"loss": "kd", "teacher": "big", "temperature": 1.0}
    chosen = student(objective=[LABELS, kd, {"loss": "jsd", "teacher": "big"}], epochs=1)
    request = request_of(cache, tmp_path / "runs", chosen, train="rows/train", validation="rows/validation")
    assert train_students(request).exit_code == 0  # a loss that is not finite ends a run


@pytest.mark.parametrize("loss", ["logit_mse", "reverse_kl"])
def test_a_loss_without_a_value_there_is_refused_by_name_before_the_first_step(tmp_path: Path, loss: str) -> None:
    build(job_of(tmp_path, '{ dtype = "fp32" }'))
    cache = Cache.open(str(tmp_path / "cache"))
    chosen = student(objective=[{"loss": loss, "teacher": "big"}])
    request = request_of(cache, tmp_path / "runs", chosen, train="rows/train", validation="rows/validation")
    with pytest.raises(MissingCapability) as error:
        prepare(request)
    assert error.value.what == f"{loss}:big has no value where a class can never be, which teacher big says"
    assert error.value.found == "24 rows of rows with a logit of -inf, or 1,000 below the largest"
    assert error.value.do == "a loss that takes them: kd, jsd, skewed_kl, skewed_reverse_kl or total_variation"


def test_a_row_without_any_class_that_can_be_refuses_its_shard(tmp_path: Path) -> None:
    report = build(job_of(tmp_path, '{ dtype = "fp32" }', masked="[0, 1, 2, 3]"))
    assert report.exit_code == 3
    assert not Cache.open(str(tmp_path / "cache")).catalogue().committed("rows", "big")
    report = build(job_of(tmp_path, '{ dtype = "fp32" }', "inf", cache="other"))
    assert report.exit_code == 3


@pytest.mark.parametrize("smaller", ['{ dtype = "int8" }', '{ kind = "sparse", k = 3, values = "8bit" }'])
def test_recoding_keeps_what_can_never_be(tmp_path: Path, program: Program, smaller: str) -> None:
    build(job_of(tmp_path, '{ dtype = "fp32" }', cache="rich"))
    build(job_of(tmp_path, smaller, cache="own"))
    job = job_of(tmp_path, smaller, cache="small")
    assert program("cache", "recode", tmp_path / "rich", job).code == 0
    small, own = (Cache.open(str(tmp_path / name)) for name in ("small", "own"))
    commits = [cache.commit(ShardKey("rows", "big", PLAIN, 0)) for cache in (small, own)]
    assert commits[0].uses == commits[1].uses
    recoded, expected = (
        read_arrays(cache.objects, commit, commit.array_names)
        for cache, commit in zip((small, own), commits, strict=True)
    )
    assert recoded.keys() == expected.keys()
    assert all(np.array_equal(recoded[name], expected[name]) for name in expected)


def test_a_plan_measures_encodings_of_a_teacher_with_such_classes(tmp_path: Path, program: Program) -> None:
    ended = program("cache", "plan", job_of(tmp_path, '{ dtype = "fp32" }'), "--json")
    assert ended.code == 0
    assert "NaN" not in ended.out


def test_a_cache_of_format_2_has_no_word_for_them(tmp_path: Path) -> None:
    build(job_of(tmp_path, '{ dtype = "fp32" }'))
    cache, key = Cache.open(str(tmp_path / "cache")), ShardKey("rows", "big", PLAIN, 0)
    commit = cache.commit(key, with_table=True)
    arrays = read_arrays(cache.objects, commit, commit.array_names)
    cache.spec = cache.spec.model_copy(update={"format": 2})
    with pytest.raises(BadRequest, match="is of format 2, which cannot say that a class can never be"):
        cache.write_shard(key, rows=(0, 8), arrays=arrays, table=commit.table, about={}, uses=commit.uses)
