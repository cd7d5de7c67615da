"""The feed for a loop of one's own: what is `student train`'s, what is refused, and who gets which rows."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from storage.cache import Cache
from storage.encodings import SparseEncoding
from storage.errors import BadRequest, MissingCapability, NotInCache
from student_train.feed import own_loop
from student_train.feed.batches import Batch
from student_train.feed.own_loop import Rows, open_rows, wants
from student_train.feed.residency import Place
from tests.student_train.toys import Recipe, write_cache

NEEDS = wants(labels=True, soft={"sage": [1.0, 3.0]}, features={"sage": ["pooled", "map"]})


def rows_of(cache: Cache, place: Place = "host") -> Rows:
    return open_rows(cache, "toy/train", NEEDS, residency=place, window_shards=2)


def seen(batch: Batch) -> list[torch.Tensor]:
    return [tensor for _, tensor in sorted(batch.tensors().items())]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        all(map(torch.equal, seen(a), seen(b))) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("place", ["host", "stream"])
@pytest.mark.parametrize("batch_size", [7, 13, 191])
def test_batches_of_workers_in_turn_are_those_of_one_process(toy_cache: Cache, place: Place, batch_size: int) -> None:
    rows = rows_of(toy_cache, place)
    whole = list(rows.epoch(2, batch_size, seed=5, first_step=1))
    assert len(whole) == rows.steps(batch_size) - 1
    of_workers = [list(rows.epoch(2, batch_size, seed=5, first_step=1, worker=(at, 3))) for at in range(3)]
    assert same(whole, [of_workers[step % 3][step // 3] for step in range(len(whole))])


def test_processes_have_all_rows_of_each_batch_among_them(toy_cache: Cache) -> None:
    rows = rows_of(toy_cache)
    of_process = [list(rows.epoch(0, 32, process=(rank, 3))) for rank in range(3)]
    assert [len(batches) for batches in of_process] == [rows.steps(32)] * 3
    for step, whole in enumerate(rows.epoch(0, 32)):
        mine = torch.cat([batches[step].inputs for batches in of_process]).flatten(1)
        assert sorted(mine.tolist()) == sorted(whole.inputs.flatten(1).tolist())


def test_a_batch_that_has_no_row_for_a_process_is_refused(toy_cache: Cache) -> None:
    with pytest.raises(BadRequest, match="too few rows for 4 processes"):
        next(rows_of(toy_cache).epoch(0, 189, process=(0, 4)))  # 192 rows
    with pytest.raises(BadRequest, match="no such worker"):
        next(rows_of(toy_cache).epoch(0, 16, worker=(2, 2)))


def test_a_copy_opens_its_rows_again(toy_cache: Cache) -> None:
    rows = rows_of(toy_cache)
    assert same(list(rows.epoch(1, 50)), list(pickle.loads(pickle.dumps(rows)).epoch(1, 50)))


def test_a_fork_opens_nothing_and_streams_nothing(toy_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, streamed = rows_of(toy_cache), rows_of(toy_cache, "stream")
    monkeypatch.setattr(own_loop, "_forked", [os.getpid()])
    assert len(list(kept.epoch(0, 50))) == 4
    with pytest.raises(BadRequest, match="is a fork"):
        rows_of(toy_cache)
    with pytest.raises(BadRequest, match="is a fork"):
        next(streamed.epoch(0, 50))


def test_what_a_cache_does_not_serve_is_refused_and_named(toy_cache: Cache, tmp_path: Path) -> None:
    sparse = write_cache(tmp_path, Recipe(encoding=SparseEncoding(kind="sparse", k=2, temperatures=[1.0, 2.0])))
    with pytest.raises(MissingCapability, match="bucket at temperature 3"):
        open_rows(sparse, "toy/train", wants(soft={"sage": 3.0}))
    with pytest.raises(NotInCache, match="no feature 'last'"):
        open_rows(toy_cache, "toy/train", wants(features={"sage": "last"}))
    with pytest.raises(NotInCache, match="oracle"):
        open_rows(toy_cache, "toy/train", wants(soft={"oracle": 1.0}))
    unlabelled = write_cache(tmp_path / "unlabelled", Recipe(unlabelled=frozenset({0})))
    with pytest.raises(BadRequest, match="have none"):
        open_rows(unlabelled, "toy/train", wants(labels=True))


def test_soft_targets_and_features_are_decoded(toy_cache: Cache) -> None:
    given = next(rows_of(toy_cache).in_order(8)).supervision()
    assert given.targets["sage"].log_p(3.0).exp().sum(dim=1).allclose(torch.ones(8))
    assert {key.array for key in given.features} == {"feature/pooled", "feature/map"}
