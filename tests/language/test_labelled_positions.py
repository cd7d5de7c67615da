"""Targets at labelled positions alone: what lies on disk, and that readers get what the old layout gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.cache.verify import verify
from storage.encodings import Capability
from storage.errors import CorruptObject
from storage.format.committing import read_stored
from storage.format.promised import check_positions
from storage.format.shards import Commit, ShardKey
from storage.inputs.ragged import Ragged
from student_train.feed.batches import ArrayKey, Batch, Needs, SoftNeed
from student_train.feed.residency import PLACE_BYTES, FeedPool, Place, array_bytes, projected_bytes
from student_train.feed.selection import select_rows
from student_train.run_files.predictions import read_predictions
from student_train.running.train import train_students
from student_train.stepping.parallel import Parallel
from tests.language.toys import counting_cache, counting_teacher, lines_cache, request, small_gpt
from tests.teacher_cache.toys import build

CPU = torch.device("cpu")
TEACHER = counting_teacher(
    extra='encoding = { kind = "sparse", k = 3, n = 2, temperatures = [2.0] }\n'
    '[teacher.features]\nlogits = { layer = "said", dtype = "fp32", pool = "none" }',
    scale=2.0,
)
NEEDS = Needs(
    labels=True,
    soft=frozenset({SoftNeed("right", Capability("bucket", 2.0))}),
    features=frozenset({ArrayKey("right", "feature/logits")}),
)


@pytest.fixture
def of_old(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let builds promise what they did before: targets at every position."""
    monkeypatch.setattr("teacher_cache.building.survey._uses", lambda catalogue, dataset: ())
    yield monkeypatch
    monkeypatch.undo()


@pytest.fixture
def both(tmp_path: Path, of_old: pytest.MonkeyPatch) -> tuple[Cache, Cache]:
    """The same targets at every position, and at labelled ones alone."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = counting_cache(tmp_path / "old", TEACHER)
    of_old.undo()
    return old, counting_cache(tmp_path / "new", TEACHER)


def commits(cache: Cache, teacher: str | None = "right") -> list[Commit]:
    keys = [ShardKey("counting", teacher, "plain", shard) for shard in sorted(cache.committed("counting", teacher))]
    return [cache.commit(key, with_table=True) for key in keys]


def test_each_array_has_the_targets_of_labelled_positions_one_after_another(both: tuple[Cache, Cache]) -> None:
    old, new = both
    assert (old.teacher("counting", "right").uses, new.teacher("counting", "right").uses) == (
        (),
        ("labelled_positions",),
    )
    for before, after in zip(commits(old), commits(new), strict=True):
        labels_SL = old.read_labels("counting", before.key.shard)
        whole = read_stored(old.objects, before, before.array_names)
        flat = read_stored(new.objects, after, after.array_names)
        assert whole.keys() == flat.keys()
        assert set(after.uses) == {"own_length", "labelled_positions"}
        for name, values_S in flat.items():
            assert isinstance(values_S, Ragged)
            assert values_S.lengths.tolist() == (labels_SL >= 0).sum(1).tolist()
            at_SL = whole[name]
            assert isinstance(at_SL, np.ndarray)
            assert np.array_equal(values_S.flat_T, at_SL[labels_SL >= 0]), name
        assert before.table.equals(after.table)
    assert not verify(new).bad
    assert not verify(old).bad


def batches(cache: Cache, place: Place) -> list[Batch]:
    selection = select_rows(cache.samples(), "counting/train", NEEDS)
    feed = FeedPool(cache, CPU, place=place, window_shards=2).feed(selection, NEEDS)
    return [batch.each(torch.clone) for batch in feed.shuffled(4, seed=3, epoch=1)]


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(
        a.tensors().keys() == b.tensors().keys()
        and all(torch.equal(values, b.tensors()[name]) for name, values in a.tensors().items())
        for a, b in pairs
    )


def test_the_same_batches_come_of_either_layout_wherever_rows_are_kept(both: tuple[Cache, Cache]) -> None:
    old, new = both
    expected = batches(old, "device")
    for batch in expected:
        num_sites = len(batch.sites())
        assert 0 < num_sites < batch.shown.numel()
        tensors = batch.tensors()
        assert {len(tensors[name]) for name in tensors if name not in ("shown", "labels")} == {num_sites}
    assert same(batches(old, "stream"), expected)
    assert same(batches(new, "device"), expected)
    assert same(batches(new, "stream"), expected)


def test_students_of_either_layout_end_at_the_same_bits_and_predictions(
    both: tuple[Cache, Cache], tmp_path: Path
) -> None:
    terms = [
        {"loss": "labels"},
        {"loss": "kd", "teacher": "right", "temperature": 2.0},
        {"loss": "hint", "teacher": "right", "feature": "logits", "student_layer": "network.body.norm"},
    ]
    records, tables = [], []
    for number, cache in enumerate(both):
        runs = tmp_path / f"runs {number}"
        [record] = train_students(request(cache, runs, small_gpt(objective=terms))).records
        predictions = read_predictions(runs / "gpt")
        assert predictions is not None
        records.append(record)
        tables.append(predictions.table)
    assert records[0].cross_entropy == records[1].cross_entropy
    assert tables[0].equals(tables[1])
    assert tables[0]["teacher_label_log_probability"].null_count() == tables[0]["label"].null_count()


def test_rows_are_projected_by_their_labelled_positions(both: tuple[Cache, Cache]) -> None:
    old, new = (select_rows(cache.samples(), "counting/train", NEEDS) for cache in both)
    assert new.labelled_N is not None
    rows, site_bytes, given = old.num_rows, array_bytes(new.catalogue, "counting", NEEDS)[2:], 12 * (4 + 4)
    assert projected_bytes([(old, NEEDS)]) == rows * (given + sum(site_bytes))
    of_sites = sum(site_bytes) // 12 * int(new.labelled_N.sum())
    assert projected_bytes([(new, NEEDS)]) == rows * (given + PLACE_BYTES * len(site_bytes)) + of_sites


def test_a_cache_that_was_begun_in_the_old_layout_goes_on_in_it(tmp_path: Path, of_old: pytest.MonkeyPatch) -> None:
    cache = counting_cache(tmp_path, TEACHER)
    dropped = commits(cache)[1]
    cache.objects.delete(dropped.key.commit_path)
    of_old.undo()
    report = build(tmp_path / "job.toml")
    assert (report.built, report.exit_code) == (1, 0)
    again = commits(cache)[1]
    assert (again.uses, again.offsets_names) == (dropped.uses, [])
    assert not verify(cache).bad


def test_targets_of_other_positions_than_have_labels_are_refused(both: tuple[Cache, Cache]) -> None:
    _, cache = both
    commit, labels_SL = commits(cache)[0], cache.read_labels("counting", 0)
    arrays = read_stored(cache.objects, commit, ["ids"])
    check_positions(commit, arrays, labels_SL)
    labels_SL[0, 0] = -1
    with pytest.raises(CorruptObject, match="ids is not of the labelled positions of its rows"):
        check_positions(commit, arrays, labels_SL)


def test_targets_parted_otherwise_than_their_commit_says_are_refused(both: tuple[Cache, Cache]) -> None:
    _, cache = both
    commit = commits(cache)[0]
    ids = read_stored(cache.objects, commit, ["ids"])["ids"]
    assert isinstance(ids, Ragged)
    moved = ids.offsets.copy()
    moved[1] -= 1
    assert commit.promised is not None
    with pytest.raises(CorruptObject, match="ids of other numbers of positions than its commit says"):
        commit.promised.check_values(commit, {"ids": Ragged(ids.flat_T, moved)})


def test_a_commit_that_does_not_say_so_is_refused(both: tuple[Cache, Cache]) -> None:
    _, cache = both
    commit = commits(cache)[0]
    assert commit.promised is not None
    with pytest.raises(CorruptObject, match="targets of other positions than are promised"):
        commit.promised.check_commit(replace(commit, uses=("own_length",)))


def test_processes_share_the_rows_of_a_batch_and_their_labelled_positions(both: tuple[Cache, Cache]) -> None:
    whole = batches(both[1], "device")[0]
    parts = [Parallel(rank, size=3).part(whole) for rank in range(3)]
    assert sum(len(part.sites()) for part in parts) == len(whole.sites())
    for rank, part in enumerate(parts):
        assert torch.equal(part.shown, whole.shown[rank::3])
        row_N = whole.sites() // whole.shown.shape[1]
        own = row_N % 3 == rank
        for name, values in part.targets["right"].arrays.items():
            assert torch.equal(values, whole.targets["right"].arrays[name][own])


def test_lines_of_their_own_length_have_targets_and_train(tmp_path: Path) -> None:
    cache = lines_cache(tmp_path, TEACHER)
    assert not verify(cache).bad
    padded = lines_cache(tmp_path / "padded", TEACHER, padded=True)
    for own, wide in zip(commits(cache), commits(padded), strict=True):
        names = [name for name in own.array_names if name != "feature/logits"]
        one, other = (read_stored(c.objects, k, names) for c, k in ((cache, own), (padded, wide)))
        assert all(np.array_equal(one[name].flat_T, other[name].flat_T) for name in names)  # type: ignore[union-attr]
    assert same(batches(cache, "device"), batches(cache, "stream"))
    records = [
        train_students(request(each, tmp_path / f"runs {i}", small_gpt())).records[0].cross_entropy
        for i, each in enumerate((cache, padded))
    ]
    assert records[0] == pytest.approx(records[1], rel=1e-5)
