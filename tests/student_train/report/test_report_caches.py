"""What the report says of a teacher's answers about tokens, from the per-sample table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from storage.cache import Cache
from storage.format.committing import read_arrays
from storage.format.shards import ShardKey
from storage.views import PLAIN
from student_train.report import caches
from tests.language.toys import IDS, counting_teacher, write_counting
from tests.teacher_cache.toys import build, write_job


def test_figures_of_tokens_are_means_over_positions_and_not_over_blocks(tmp_path: Path) -> None:
    dataset = write_counting(tmp_path, rows=6).replace("validation = 0.25", 'mask = "mask.npy"')
    tokens = np.random.default_rng(0).integers(0, IDS - 1, (6, 12))  # of which the teacher guesses some
    np.save(tmp_path / "counting.npy", tokens.astype(np.uint16))
    np.save(tmp_path / "mask.npy", np.arange(12) < np.array([[12], [2], [12], [1], [3], [12]]))
    assert build(write_job(tmp_path, dataset, counting_teacher(scale=2.0))).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))

    labels = read_arrays(cache.objects, cache.commit(ShardKey("counting", None, PLAIN, 0)), ["labels"])["labels"]
    log_p = torch.from_numpy(cache.read_targets("counting", "right", 0)["logits"]).log_softmax(-1)
    known = torch.from_numpy(labels) >= 0
    by_hand = -log_p.gather(-1, torch.from_numpy(labels).long()[known][:, None])[:, 0]
    assert len({int(row) for row in known.sum(1)}) > 1

    (figures,) = caches.cache_facts(cache, ["counting"]).teachers[0].figures
    assert figures.cross_entropy == pytest.approx(float(by_hand.mean()), rel=1e-6)
    assert figures.confidence == pytest.approx(float(log_p.exp().amax(-1).mean()), rel=1e-6)


def test_blocks_whose_positions_nobody_counted_weigh_as_the_others_do() -> None:
    assert caches._mean(pl.Series([1.0, 2.0, None]), pl.Series([1, 3, 5])) == 1.75
    assert caches._mean(pl.Series([1.0, 2.0]), pl.Series([None, None], dtype=pl.Int64)) == 1.5
    assert caches._mean(pl.Series([], dtype=pl.Float32), pl.Series([], dtype=pl.Int64)) is None
