"""Rows of their own length in memory, and batches of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.errors import CorruptObject
from student_train.feed.batches import Needs
from student_train.feed.residency import PLACE_BYTES, FeedPool, Place, projected_bytes
from student_train.feed.selection import Selection, select_rows
from tests.texts.toys import text_cache

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return text_cache(tmp_path_factory.mktemp("fed"), count=120)


@pytest.fixture
def selection(cache: Cache) -> Selection:
    return select_rows(cache.samples(), "texts/train", Needs(labels=True))


def epoch(
    cache: Cache, selection: Selection, place: Place, batch_size: int = 7
) -> list[tuple[list[list[int]], list[int]]]:
    feed = FeedPool(cache, CPU, place=place, window_shards=2).feed(selection, Needs(labels=True))
    return [
        (batch.inputs.tolist(), batch.labels_B.tolist())  # type: ignore[union-attr]
        for batch in feed.shuffled(batch_size, seed=3, epoch=1)
    ]


def test_the_same_batches_come_wherever_rows_are_kept(cache: Cache, selection: Selection) -> None:
    assert epoch(cache, selection, "device") == epoch(cache, selection, "stream")


def test_a_batch_is_padded_to_its_own_longest_row_and_every_row_is_in_one(cache: Cache, selection: Selection) -> None:
    found = []
    for inputs, labels in epoch(cache, selection, "stream"):
        assert all(max(column) >= 0 for column in zip(*inputs, strict=True))
        found += [(tuple(i for i in row if i >= 0), label) for row, label in zip(inputs, labels, strict=True)]
    starts = {shard.shard: shard.start for shard in cache.catalogue().shards("texts")}
    samples = cache.samples().of("texts").filter(split="train").select("shard", "row", "label")
    expected = [
        (tuple(cache.read_ragged("texts", shard)[row - starts[shard]].tolist()), label)
        for shard, row, label in samples.iter_rows()
    ]
    assert sorted(found) == sorted(expected)


def test_rows_are_projected_at_their_own_length(selection: Selection) -> None:
    assert selection.lengths_N is not None
    tokens = int(selection.lengths_N.sum())
    assert projected_bytes([(selection, Needs(labels=True))]) == 4 * tokens + PLACE_BYTES * selection.num_rows


@pytest.mark.parametrize("place", ["device", "stream"])
def test_a_shard_of_other_lengths_than_its_commit_says_is_refused(
    place: Place, cache: Cache, selection: Selection, tmp_path: Path
) -> None:
    assert selection.lengths_N is not None
    wrong = replace(selection, lengths_N=np.roll(selection.lengths_N, 1))
    with pytest.raises(CorruptObject, match="has rows of other lengths than its commit says"):
        epoch(cache, wrong, place)
