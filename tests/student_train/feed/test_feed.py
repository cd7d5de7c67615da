from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.cache import Cache
from storage.encodings import Capability, SparseEncoding, packing
from storage.errors import CorruptObject, StaleCache
from storage.targets.soft import DenseTargets
from storage.views import PLAIN
from student_train.feed.batches import ArrayKey, Batch, Name, Needs, SoftNeed
from student_train.feed.feed import Feed
from student_train.feed.order import Cut
from student_train.feed.residency import FeedPool, Place
from student_train.feed.selection import select_rows
from student_train.feed.shard_source import ShardSource
from tests.student_train.toys import Recipe, write_cache

POOLED, MAP = (ArrayKey("sage", name) for name in ("feature/pooled", "feature/map"))
SOFT = Needs(soft=frozenset({SoftNeed("sage", Capability("bucket", 1.0))}))
ALL = Needs(labels=True, features=frozenset({POOLED, MAP})) | SOFT
CPU = torch.device("cpu")
PLACES: tuple[Place, ...] = ("device", "stream")


def feed_of(cache: Cache, needs: Needs = ALL, *, place: Place, window_shards: int = 2, rows: str = "toy/train") -> Feed:
    selection = select_rows(cache.samples(), rows, needs)
    return FeedPool(cache, CPU, place=place, window_shards=window_shards).feed(selection, needs)


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.inputs, b.inputs)
        assert a.labels_B is not None
        assert b.labels_B is not None
        assert torch.equal(a.labels_B, b.labels_B)
        assert a.targets.keys() == b.targets.keys()
        for teacher, encoded in a.targets.items():
            assert all(torch.equal(encoded.arrays[n], b.targets[teacher].arrays[n]) for n in encoded.arrays)
        assert a.features.keys() == b.features.keys()
        assert all(torch.equal(a.features[key], b.features[key]) for key in a.features)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 80), st.integers(1, 6), st.integers(0, 2), st.integers(0, 5))
def test_kept_and_streamed_rows_give_the_same_batches(
    toy_cache: Cache, batch_size: int, window_shards: int, epoch: int, first_step: int
) -> None:
    kept = feed_of(toy_cache, place="device", window_shards=window_shards)
    streamed = feed_of(toy_cache, place="stream", window_shards=window_shards)
    order = {"seed": 3, "epoch": epoch, "first_step": first_step}
    assert_same(list(kept.shuffled(batch_size, **order)), list(streamed.shuffled(batch_size, **order)))


CUTS = st.lists(
    st.builds(Cut, st.integers(1, 80), st.just(PLAIN), st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=25)
@given(CUTS, st.integers(1, 6), st.integers(0, 2))
def test_a_shared_pass_gives_each_cut_what_it_would_have_alone(
    toy_cache: Cache, cuts: list[Cut], window_shards: int, epoch: int
) -> None:
    alone = feed_of(toy_cache, place="device", window_shards=window_shards)
    passes = []
    for place in PLACES:
        feed = feed_of(toy_cache, place=place, window_shards=window_shards)
        fed = list(feed.shared(cuts, seed=3, epoch=epoch))
        passes.append([(each.cut, each.step) for each in fed])
        for number, cut in enumerate(cuts):
            own = [each for each in fed if each.cut == number]
            steps = range(cut.first_step, -(-feed.num_rows // cut.batch_size), cut.every)
            assert [each.step for each in own] == list(steps)
            expected = list(alone.shuffled(cut.batch_size, seed=3, epoch=epoch, first_step=cut.first_step))
            assert_same([each.batch for each in own], expected[:: cut.every])
    assert passes[0] == passes[1]


def test_a_shared_pass_reads_each_shard_once(toy_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    read, indices = ShardSource.reading, []

    def counting(self: ShardSource, index: int, names: frozenset[Name]) -> object:
        indices.append(index)
        return read(self, index, names)

    monkeypatch.setattr(ShardSource, "reading", counting)
    feed = feed_of(toy_cache, place="stream")
    assert len(list(feed.shared([Cut(7), Cut(32), Cut(100, first_step=1)], seed=0, epoch=0))) == 28 + 6 + 1
    assert sorted(indices) == [0, 1, 2, 3, 4]


def test_students_of_one_batch_share_what_is_decoded(toy_cache: Cache) -> None:
    (batch,) = feed_of(toy_cache, place="device").shuffled(200, seed=0, epoch=0)
    assert batch.inputs is batch.inputs
    assert batch.supervision() is batch.supervision()


def test_inputs_are_as_stored_until_a_student_asks(toy_cache: Cache) -> None:
    (batch,) = feed_of(toy_cache, place="device").shuffled(200, seed=0, epoch=0)
    assert (batch.shown.dtype, batch.inputs.dtype) == (torch.uint8, torch.float32)


@pytest.mark.parametrize("place", PLACES)
def test_going_on_from_a_step_gives_the_batches_that_are_left(toy_cache: Cache, place: Place) -> None:
    feed = feed_of(toy_cache, place=place)
    whole = list(feed.shuffled(32, seed=1, epoch=4))
    assert_same(list(feed.shuffled(32, seed=1, epoch=4, first_step=3)), whole[3:])


@pytest.mark.parametrize("place", PLACES)
def test_rows_in_order_are_those_of_the_dataset(toy_cache: Cache, place: Place) -> None:
    feed = feed_of(toy_cache, place=place, rows="toy/validation")
    inputs = torch.cat([batch.inputs for batch in feed.in_order(7)])
    stored = np.concatenate([toy_cache.read_inputs("toy", shard) for shard in range(5)])[4::5]
    assert torch.equal(inputs, torch.from_numpy(stored).float() / 255)


@pytest.mark.parametrize("logits_dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("place", PLACES)
def test_each_row_comes_with_its_own_label_and_targets(tmp_path: Path, logits_dtype: str, place: Place) -> None:
    cache = write_cache(tmp_path, Recipe(logits_dtype=logits_dtype, unreadable=frozenset({5, 60})))
    table = cache.samples().of("toy", ["sage"])
    stored = np.concatenate([cache.read_inputs("toy", shard) for shard in range(5)])
    row_of = {stored[row].tobytes(): row for row in table["row"].to_list()}
    labels = dict(table.select("row", "label").iter_rows())
    tops = dict(table.select("row", "sage_top").iter_rows())
    for batch in feed_of(cache, place=place).shuffled(32, seed=0, epoch=0):
        rows = [row_of[(255 * x).round().byte().numpy().tobytes()] for x in batch.inputs]
        assert batch.labels_B is not None
        assert batch.labels_B.tolist() == [labels[row] for row in rows]
        targets = batch.supervision().targets["sage"]
        assert isinstance(targets, DenseTargets)
        assert targets.logits_BC.argmax(1).tolist() == [tops[row] for row in rows]
        assert targets.logits_BC.dtype == torch.float32


def test_only_the_arrays_that_are_needed_are_read(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe())
    for path in (tmp_path / "toy/sage/plain").rglob("feature/*/c/**/*"):
        path.write_bytes(b"") if path.is_file() else None
    feed = feed_of(cache, SOFT, place="device")
    assert sum(len(batch.inputs) for batch in feed.shuffled(32, seed=0, epoch=0)) == 192


@pytest.mark.parametrize("place", PLACES)
def test_inputs_that_the_teacher_never_saw_are_refused(tmp_path: Path, place: Place) -> None:
    cache = write_cache(tmp_path, Recipe(other_inputs=frozenset({3})))
    with pytest.raises(StaleCache, match="toy/sage/plain/00003"):
        list(feed_of(cache, place=place).shuffled(32, seed=0, epoch=0))


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_is_an_error_and_never_a_row(tmp_path: Path, place: Place) -> None:
    cache = write_cache(tmp_path, Recipe())
    chunk = max(
        (p for p in (tmp_path / "toy/ingest").rglob("*") if p.is_file()), key=lambda p: ("/c/" in str(p), str(p))
    )
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(CorruptObject):
        list(feed_of(cache, place=place).shuffled(32, seed=0, epoch=0))


@pytest.mark.parametrize("place", PLACES)
def test_ids_that_are_no_class_are_an_error_that_names_their_shard(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program wrote them, with digests that are right."""
    honest = packing.to_differences
    monkeypatch.setattr(packing, "to_differences", lambda ids_BK, classes: honest(ids_BK + classes, classes))
    cache = write_cache(tmp_path, Recipe(encoding=SparseEncoding(k=2)))
    with pytest.raises(CorruptObject, match=r"toy/sage/plain/0000\d: its values cannot be\n.*ids names class 7 of 4"):
        list(feed_of(cache, SOFT, place=place).shuffled(32, seed=0, epoch=0))
