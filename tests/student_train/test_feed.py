from __future__ import annotations

import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.cache import Cache
from storage.encodings import Capability, SparseEncoding, packing
from storage.encodings.targets import DenseTargets
from storage.errors import BadRequest, CorruptObject, StaleCache
from student_train.devices import free_bytes
from student_train.feed import Feed, ShardSource
from student_train.needs import ArrayKey, Batch, Needs, SoftNeed
from student_train.residency import FeedPool, choose_residency, projected_bytes, row_bytes
from student_train.selection import select_rows
from tests.student_train.toys import Recipe, write_cache

POOLED, MAP = (ArrayKey("sage", name) for name in ("feature/pooled", "feature/map"))
SOFT = Needs(soft=frozenset({SoftNeed("sage", Capability("bucket", 1.0))}))
ALL = Needs(labels=True, features=frozenset({POOLED, MAP})) | SOFT
CPU = torch.device("cpu")


def feed_of(
    cache: Cache, needs: Needs = ALL, *, resident: bool, window_shards: int = 2, rows: str = "toy/train"
) -> Feed:
    selection = select_rows(cache, rows, needs)
    return FeedPool(cache, CPU, resident=resident, window_shards=window_shards).feed(selection, needs)


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
def test_resident_and_streamed_give_the_same_batches(
    toy_cache: Cache, batch_size: int, window_shards: int, epoch: int, first_step: int
) -> None:
    resident = feed_of(toy_cache, resident=True, window_shards=window_shards)
    streamed = feed_of(toy_cache, resident=False, window_shards=window_shards)
    order = {"seed": 3, "epoch": epoch, "first_step": first_step}
    assert_same(list(resident.shuffled(batch_size, **order)), list(streamed.shuffled(batch_size, **order)))


@pytest.mark.parametrize("resident", [True, False])
def test_going_on_from_a_step_gives_the_batches_that_are_left(toy_cache: Cache, resident: bool) -> None:
    feed = feed_of(toy_cache, resident=resident)
    whole = list(feed.shuffled(32, seed=1, epoch=4))
    assert_same(list(feed.shuffled(32, seed=1, epoch=4, first_step=3)), whole[3:])


@pytest.mark.parametrize("resident", [True, False])
def test_rows_in_order_are_those_of_the_dataset(toy_cache: Cache, resident: bool) -> None:
    feed = feed_of(toy_cache, resident=resident, rows="toy/validation")
    inputs = torch.cat([batch.inputs for batch in feed.in_order(7)])
    stored = np.concatenate([toy_cache.read_inputs("toy", shard) for shard in range(5)])[4::5]
    assert torch.equal(inputs, torch.from_numpy(stored).float() / 255)


@pytest.mark.parametrize("logits_dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("resident", [True, False])
def test_each_row_comes_with_its_own_label_and_targets(tmp_path: Path, logits_dtype: str, resident: bool) -> None:
    cache = write_cache(tmp_path, Recipe(logits_dtype=logits_dtype, unreadable=frozenset({5, 60})))
    table = cache.samples("toy", ["sage"])
    stored = np.concatenate([cache.read_inputs("toy", shard) for shard in range(5)])
    row_of = {stored[row].tobytes(): row for row in table["row"].to_list()}
    labels = dict(table.select("row", "label").iter_rows())
    tops = dict(table.select("row", "sage_top").iter_rows())
    for batch in feed_of(cache, resident=resident).shuffled(32, seed=0, epoch=0):
        rows = [row_of[(255 * x).round().byte().numpy().tobytes()] for x in batch.inputs]
        assert batch.labels_B is not None
        assert batch.labels_B.tolist() == [labels[row] for row in rows]
        targets = batch.supervision().targets["sage"]
        assert isinstance(targets, DenseTargets)
        assert targets.logits_BC.argmax(1).tolist() == [tops[row] for row in rows]
        assert targets.logits_BC.dtype == torch.float32


def test_rows_stay_in_their_stored_type(toy_cache: Cache) -> None:
    selection = select_rows(toy_cache, "toy/train", ALL)
    names = frozenset({"inputs", ArrayKey("sage", "logits")})
    arrays = ShardSource(toy_cache, selection).load((0, 1), names, CPU)
    assert {str(name): values.dtype for name, values in arrays.items()} == {
        "inputs": torch.uint8,
        "sage/logits": torch.float16,
    }


def test_only_the_arrays_that_are_needed_are_read(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe())
    for path in (tmp_path / "toy/sage/plain").rglob("feature/*/c/**/*"):
        path.write_bytes(b"") if path.is_file() else None
    feed = feed_of(cache, SOFT, resident=True)
    assert sum(len(batch.inputs) for batch in feed.shuffled(32, seed=0, epoch=0)) == 192


@pytest.mark.parametrize("resident", [True, False])
def test_inputs_that_the_teacher_never_saw_are_refused(tmp_path: Path, resident: bool) -> None:
    cache = write_cache(tmp_path, Recipe(other_inputs=frozenset({3})))
    with pytest.raises(StaleCache, match="toy/sage/plain/00003"):
        list(feed_of(cache, resident=resident).shuffled(32, seed=0, epoch=0))


@pytest.mark.parametrize("resident", [True, False])
def test_a_flipped_bit_is_an_error_and_never_a_row(tmp_path: Path, resident: bool) -> None:
    cache = write_cache(tmp_path, Recipe())
    chunk = max(
        (p for p in (tmp_path / "toy/ingest").rglob("*") if p.is_file()), key=lambda p: ("/c/" in str(p), str(p))
    )
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(CorruptObject):
        list(feed_of(cache, resident=resident).shuffled(32, seed=0, epoch=0))


@pytest.mark.parametrize("resident", [True, False])
def test_ids_that_are_no_class_are_an_error_that_names_their_shard(
    tmp_path: Path, resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program wrote them, with digests that are right."""
    honest = packing.to_differences
    monkeypatch.setattr(packing, "to_differences", lambda ids_BK, classes: honest(ids_BK + classes, classes))
    cache = write_cache(tmp_path, Recipe(encoding=SparseEncoding(k=2)))
    with pytest.raises(CorruptObject, match=r"toy/sage/plain/0000\d: ids names class 7 of 4"):
        list(feed_of(cache, SOFT, resident=resident).shuffled(32, seed=0, epoch=0))


def test_a_stream_holds_two_windows_and_no_more(toy_cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    most = 0
    load = ShardSource.load

    def counting(*args: object, **kwargs: object) -> object:
        nonlocal most
        arrays = load(*args, **kwargs)  # type: ignore[arg-type]
        held.append(weakref.ref(arrays["inputs"]))
        most = max(most, sum(ref() is not None for ref in held))
        return arrays

    monkeypatch.setattr(ShardSource, "load", counting)
    for _ in feed_of(toy_cache, resident=False, window_shards=1).shuffled(30, seed=0, epoch=0):
        time.sleep(0.1)  # a step long enough for the next window to be read
        most = max(most, sum(ref() is not None for ref in held))
    assert (most, len(held)) == (2, 5)


def test_students_with_the_same_needs_share_their_rows(toy_cache: Cache) -> None:
    pool = FeedPool(toy_cache, CPU, resident=True, window_shards=2)
    selection = select_rows(toy_cache, "toy/train", ALL)
    ticks: list[tuple[int, int]] = []
    for needs in (Needs(labels=True), SOFT, SOFT):
        pool.feed(selection, needs, lambda done, shards: ticks.append((done, shards)))
    assert ticks == [(i, 5) for i in range(1, 6)] * 2  # inputs, then logits, then nothing


def test_an_array_that_two_students_need_counts_once(toy_cache: Cache) -> None:
    selection = select_rows(toy_cache, "toy/train", ALL)
    labels, taught = Needs(labels=True), SOFT
    both = projected_bytes(toy_cache, [(selection, labels), (selection, taught)])
    assert both == 192 * (36 + 4 * 2) == 192 * row_bytes(toy_cache, "toy", taught)


def test_the_projected_bytes_are_those_that_are_loaded(toy_cache: Cache) -> None:
    selection = select_rows(toy_cache, "toy/train", ALL)
    source = ShardSource(toy_cache, selection)
    arrays = source.load(tuple(range(5)), source.names(ALL), CPU)
    assert sum(values.nbytes for values in arrays.values()) == projected_bytes(toy_cache, [(selection, ALL)])


def test_rows_that_fit_are_resident_and_others_are_streamed() -> None:
    free = free_bytes(CPU)
    assert [choose_residency("auto", size, CPU).resident for size in (free // 3, free)] == [True, False]


def test_the_job_may_name_the_residency() -> None:
    assert [choose_residency(asked, 10, CPU).resident for asked in ("resident", "stream")] == [True, False]


def test_resident_rows_that_cannot_fit_are_refused() -> None:
    with pytest.raises(BadRequest, match="do not fit"):
        choose_residency("resident", 2**50, CPU)
