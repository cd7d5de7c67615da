"""Rows of several datasets in one feed, each taught by its dataset's own teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.encodings import Capability
from student_train.feed.batches import ArrayKey, Batch, Needs, SoftNeed
from student_train.feed.feed import Feed
from student_train.feed.residency import FeedPool, Place
from student_train.feed.selection import Part, Selection, join_selections, select_rows
from tests.student_train.toys import Recipe, write_cache

LAW = Recipe(dataset="law", rows=110, teacher_name="lawyer", seed=1)
CODE = Recipe(dataset="code", rows=130, teacher_name="coder", seed=2, sureness=1.0)
BOTH = "code=coder,law=lawyer"
CPU = torch.device("cpu")


def needs_of(teacher: str) -> Needs:
    soft = frozenset({SoftNeed(teacher, Capability("bucket", 1.0))})
    return Needs(labels=True, soft=soft, features=frozenset({ArrayKey(teacher, "feature/pooled")}))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("domains") / "cache"
    write_cache(folder, LAW)
    return write_cache(folder, CODE)


def selected(cache: Cache, *rows: str, agree_with: str | None = None) -> Selection:
    samples = cache.samples()
    return join_selections([select_rows(samples, each, needs_of(BOTH)) for each in rows])


def feed_of(cache: Cache, selection: Selection, teacher: str, place: Place) -> Feed:
    return FeedPool(cache, CPU, place=place, window_shards=3).feed(selection, needs_of(teacher))


def rows_by_input(batches: list[Batch], teacher: str) -> dict[bytes, tuple[int, bytes, bytes]]:
    """Return label, logits and feature of each row by its pixels."""
    found = {}
    for batch in batches:
        assert batch.labels_B is not None
        feature = batch.features[ArrayKey(teacher, "feature/pooled")]
        logits = batch.targets[teacher].arrays["logits"]
        for pixels, label, given, pooled in zip(batch.shown, batch.labels_B, logits, feature, strict=True):
            found[pixels.numpy().tobytes()] = (int(label), given.numpy().tobytes(), pooled.numpy().tobytes())
    return found


@pytest.mark.parametrize("place", ["device", "stream"])
def test_each_row_is_taught_by_the_teacher_of_its_dataset(cache: Cache, place: Place) -> None:
    own = {}
    for rows, teacher in (("law/train", "lawyer"), ("code/train", "coder")):
        alone = select_rows(cache.samples(), rows, needs_of(teacher))
        own |= rows_by_input(list(feed_of(cache, alone, teacher, "device").in_order(20)), teacher)
    feed = feed_of(cache, selected(cache, "law/train", "code/train"), BOTH, place)
    for epoch in range(2):
        batches = list(feed.shuffled(16, seed=0, epoch=epoch))
        assert sum(len(batch.shown) for batch in batches) == 88 + 104
        assert rows_by_input(batches, BOTH) == own


def test_rows_of_both_datasets_are_shuffled_together_and_the_same_wherever_they_are_kept(cache: Cache) -> None:
    selection = selected(cache, "law/train", "code/train")
    kept, streamed = (
        [batch.shown for batch in feed_of(cache, selection, BOTH, place).shuffled(16, seed=0, epoch=0)]
        for place in ("device", "stream")
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, streamed, strict=True))
    law = set(rows_by_input(list(feed_of(cache, selected(cache, "law/train"), BOTH, "device").in_order(88)), BOTH))
    shares = [np.mean([row.numpy().tobytes() in law for row in batch]) for batch in kept]
    assert sum(0 < share < 1 for share in shares) > len(shares) // 2


def test_a_selection_says_which_of_its_rows_are_whose(cache: Cache) -> None:
    both = selected(cache, "law/train", "code/train")
    assert both.parts == (Part("law", range(3), range(88)), Part("code", range(3, 6), range(88, 192)))
    assert [str(both.key(index)) for index in (2, 3)] == ["law/ingest/00002", "code/ingest/00000"]
    law, code = both.apart()
    for apart, alone in ((law, selected(cache, "law/train")), (code, selected(cache, "code/train"))):
        assert (apart.parts, apart.shards_S) == (alone.parts, alone.shards_S)
        assert np.array_equal(apart.keys_N, alone.keys_N)
        assert np.array_equal(np.concatenate(apart.rows), np.concatenate(alone.rows))
        assert np.array_equal(apart.labels_N, alone.labels_N)


def test_the_order_of_datasets_is_part_of_what_rows_are(cache: Cache) -> None:
    prints = {selected(cache, *rows).fingerprint for rows in (("law", "code"), ("code", "law"), ("law",), ("code",))}
    assert len(prints) == 4


def test_rows_of_one_dataset_are_what_they_were_before_there_could_be_several(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe())
    alone = select_rows(cache.samples(), "toy/train", Needs(labels=True))
    assert join_selections([alone]) is alone
    assert alone.fingerprint == "a3722b4bc705a8b0830518d5166f5296"
