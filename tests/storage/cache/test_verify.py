"""Damage is found and named; repair forgets it; only old garbage is collected."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.cache import Cache
from storage.cache.verify import GRACE_S, READERS, BadShard, Verification, repair, verify
from storage.encodings import DenseEncoding, Encoding
from storage.errors import BadRequest, CorruptObject, MissingObject, StorageFailure
from storage.format.committing import write_shard
from storage.format.objects import TEMPORARY_PREFIX, LocalObjects
from storage.format.rows import Segment, create_segment
from storage.format.sealed import seal, unseal
from storage.format.shards import Commit, ShardKey
from storage.format.specs import DatasetSpec, write_spec
from storage.format.stores.base import num_ahead
from tests.conftest import Program
from tests.damage import flip
from tests.student_train.toys import Recipe, write_cache

INGEST = ShardKey("digits", None, "plain", 1)
TARGETS = ShardKey("digits", "cnn", "plain", 1)


def file_of(cache: Cache, key: ShardKey) -> Path:
    """Return the file of a shard's arrays."""
    return Path(cache.url) / cache.commit(key).group


def bad(cache: Cache) -> list[ShardKey]:
    return [bad.key for bad in verify(cache).bad]


def promise_encoding(cache: Cache, encoding: Encoding) -> Cache:
    """Return the cache as it is opened after its promise was exchanged."""
    spec = cache.teacher("digits", "cnn").model_copy(update={"encoding": encoding})
    cache.objects.put("digits/cnn/teacher.json", spec.to_json())
    return Cache.open(cache.url)


def make_older(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


def test_a_whole_cache_verifies(cache: Cache) -> None:
    found = verify(cache)
    committed = [
        cache.commit(ShardKey("digits", teacher, "plain", shard)) for teacher in (None, "cnn") for shard in range(3)
    ]
    num_bytes = sum((Path(cache.url) / commit.group).stat().st_size for commit in committed)
    assert (found.shards, found.bytes, found.bad, found.garbage) == (6, num_bytes, (), ())


def test_verification_tells_its_progress(cache: Cache) -> None:
    seen: list[tuple[int, int]] = []
    verify(cache, lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("key", [INGEST, TARGETS], ids=str)
def test_a_flipped_bit_is_found_and_named(cache: Cache, key: ShardKey) -> None:
    path = flip(cache, key)
    ((found, reason),) = verify(cache).bad
    assert (found, reason.splitlines()[0]) == (key, f"CorruptObject: {path} is not what was committed")


def test_a_truncated_object_is_found(cache: Cache) -> None:
    path = file_of(cache, TARGETS)
    path.write_bytes(path.read_bytes()[:-1])
    assert bad(cache) == [TARGETS]


def test_a_missing_object_is_found_and_named(cache: Cache) -> None:
    path = file_of(cache, TARGETS)
    path.unlink()
    ((found, reason),) = verify(cache).bad
    assert (found, reason.splitlines()[0]) == (TARGETS, f"MissingObject: {path} is not there")


def test_objects_swapped_between_shards_are_both_found(cache: Cache) -> None:
    one, two = file_of(cache, TARGETS), file_of(cache, TARGETS._replace(shard=0))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert bad(cache) == [TARGETS._replace(shard=0), TARGETS]


def test_an_object_that_only_metadata_tools_read_is_checked_too(cache: Cache) -> None:
    flip(cache, TARGETS, "zarr.json")
    assert bad(cache) == [TARGETS]


def test_a_damaged_commit_is_found(cache: Cache) -> None:
    path = Path(cache.url) / TARGETS.commit_path
    path.write_bytes(path.read_bytes()[:-5])
    ((found, reason),) = verify(cache).bad
    assert (found, reason.splitlines()[0]) == (TARGETS, f"CorruptObject: {TARGETS.commit_path} is not a whole commit")


@pytest.mark.parametrize("act", [verify, lambda cache: repair(cache, Verification(6, 0, (BadShard(INGEST, ""),), ()))])
def test_a_lost_plan_segment_is_told_and_no_shard_is_blamed_for_it(cache: Cache, act: Callable[..., object]) -> None:
    cache.objects.delete("digits/plan/00000.parquet")
    with pytest.raises(MissingObject) as caught:
        act(cache)
    assert (caught.value.expected, caught.value.do, cache.committed("digits")) == (
        "digits/plan/00000.parquet",
        "restore it from a copy of the cache",
        {0, 1, 2},
    )


def test_a_plan_that_several_shards_contradict_is_the_suspect_itself(
    cache: Cache, segment: Callable[..., Segment]
) -> None:
    path = "digits/plan/00000.parquet"
    cache.objects.put(path, segment(("a", 0, 9), rows_per_shard=3).to_parquet(path))
    with pytest.raises(CorruptObject) as caught:
        verify(cache)
    assert (caught.value.what, (caught.value.found or "").splitlines()[:2]) == (
        f"{cache.url}/digits/plan is not the plan that its shards were built by",
        ["6 shards of other rows than planned, such as", "digits/ingest/00000: rows 0 to 4"],
    )


def test_a_build_that_begins_while_commits_are_listed_is_no_damage(
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    segment: Callable[..., Segment],
    write_ingest: Callable[..., Commit],
    dataset_spec: DatasetSpec,
) -> None:
    inner = LocalObjects.versions

    def grow_first(self: LocalObjects, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        if folder == "digits/ingest" and not cache.objects.list("digits/plan").objects[1:]:
            create_segment(cache.objects, "digits", 1, segment(("b", 0, 2)))
            write_ingest(cache, 3, 10, 12)
            write_spec(cache.objects, "late/dataset.json", dataset_spec.model_copy(update={"name": "late"}), "job.toml")
            create_segment(cache.objects, "late", 0, segment(("b", 0, 2)))
        return inner(self, folder, names)

    monkeypatch.setattr(LocalObjects, "versions", grow_first)
    found = verify(cache)
    assert (found.shards, found.bad) == (7, ())


def test_a_sample_id_of_two_rows_is_told_with_both(cache: Cache, write_ingest: Callable[..., Commit]) -> None:
    commit = cache.commit(INGEST, with_table=True)
    ids = pa.array(["digits:4", "digits:1", "digits:6", "digits:3"])  # row 3 itself was never read
    table = commit.table.set_column(commit.table.column_names.index("sample_id"), "sample_id", ids)
    arrays = {"inputs": cache.read_inputs("digits", 1)}
    cache.objects.delete(INGEST.commit_path)
    cache.write_shard(INGEST, rows=(4, 8), arrays=arrays, table=table, about=commit.about)
    with pytest.raises(BadRequest) as caught:
        verify(cache)
    assert (caught.value.found, cache.samples().duplicates("digits")["sample_id"].to_list()) == (
        "digits:1: rows [1, 5]",
        ["digits:1"],
    )


def test_a_shard_of_other_rows_than_planned_is_found(cache: Cache, write_ingest: Callable[..., Commit]) -> None:
    cache.objects.delete("digits/ingest/00002.parquet")
    write_ingest(cache, 2, 9, 11)
    assert bad(cache)[0] == INGEST._replace(shard=2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_found(cache: Cache, write_targets: Callable[..., Commit], value: float) -> None:
    cache.objects.delete(TARGETS.commit_path)
    logits_SC = np.zeros((4, 3), np.float32)
    logits_SC[2, 1] = value
    write_targets(cache, 1, logits_SC=logits_SC)
    ((found, reason),) = verify(cache).bad
    assert (found, reason.splitlines()[:2]) == (
        TARGETS,
        [
            "CorruptObject: digits/cnn/plain/00001: its values cannot be",
            "  found     logits holds NaN or infinity",
        ],
    )


@pytest.mark.parametrize(("bits", "expected"), [(0x3F80, []), (0x7F80, [TARGETS]), (0x7FC0, [TARGETS])])
def test_bf16_is_looked_at_through_its_bits(
    cache: Cache, write_targets: Callable[..., Commit], bits: int, expected: list[ShardKey]
) -> None:
    cache = promise_encoding(cache, DenseEncoding(dtype="bf16", statistics=False))
    for shard, rows, value in ((0, 4, 0), (1, 4, bits), (2, 2, 0)):
        cache.objects.delete(TARGETS._replace(shard=shard).commit_path)
        write_targets(cache, shard, logits_SC=np.full((rows, 3), value, np.uint16))
    assert bad(cache) == expected


def test_a_table_that_lists_other_rows_is_found(cache: Cache) -> None:
    cache.objects.delete(INGEST.commit_path)
    table = pa.table({"row": pa.array([4, 5, 7, 6], pa.int64())})
    arrays = {"inputs": np.zeros((4, 1, 2, 2), np.uint8)}
    cache.write_shard(INGEST, rows=(4, 8), arrays=arrays, table=table, about={"inputs_digest": ""})
    assert INGEST in bad(cache)


def test_targets_of_inputs_that_have_changed_since_are_found(cache: Cache, write_ingest: Callable[..., Commit]) -> None:
    cache.objects.delete(INGEST.commit_path)
    write_ingest(cache, 1, 4, 8, seed=1)
    assert bad(cache) == [TARGETS]


def test_damaged_inputs_do_not_condemn_what_a_teacher_said_of_them(cache: Cache) -> None:
    (Path(cache.url) / INGEST.commit_path).write_bytes(b"")
    assert bad(cache) == [INGEST]


def test_targets_of_another_teacher_than_promised_are_found(cache: Cache) -> None:
    commit = cache.commit(TARGETS, with_table=True)
    arrays = cache.read_targets("digits", "cnn", 1)
    cache.objects.delete(TARGETS.commit_path)
    belonging = cache.promises.of("digits", "cnn")._replace(promise="another")
    facts = {"rows": (4, 8), "arrays": arrays, "table": commit.table, "about": commit.about}
    write_shard(cache.objects, TARGETS, belonging=belonging, **facts)
    ((found, reason),) = verify(cache).bad
    assert (found, reason.splitlines()[1]) == (TARGETS, "  found     teacher fingerprint another")


@pytest.mark.parametrize("path", ["digits/dataset.json", "digits/cnn/teacher.json", "digits/plan/00000.parquet"])
def test_a_damaged_promise_is_named_and_no_shard_is_blamed_for_it(cache: Cache, path: str) -> None:
    (Path(cache.url) / path).write_bytes(b"{}")
    with pytest.raises(CorruptObject) as caught:
        verify(cache)
    assert caught.value.what.startswith(f"{cache.url}/{path} is not a whole ")


def test_a_disk_that_fails_is_not_taken_for_damage(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: LocalObjects, path: str, most_bytes: int | None = None) -> bytes:
        if path.endswith(".zip"):
            raise StorageFailure(f"cannot read {path}", found="Connection reset by peer")
        return (self.root / path).read_bytes()

    monkeypatch.setattr(LocalObjects, "get", fail)
    with pytest.raises(StorageFailure):
        verify(cache)


def test_every_damage_is_found_not_only_the_first(cache: Cache) -> None:
    for shard in range(3):
        file_of(cache, TARGETS._replace(shard=shard)).unlink()
    assert bad(cache) == [TARGETS._replace(shard=shard) for shard in range(3)]


# --- repair


@pytest.mark.parametrize("key", [INGEST, TARGETS], ids=str)
def test_repair_drops_a_bad_shard_and_nothing_else(cache: Cache, key: ShardKey) -> None:
    file_of(cache, key).unlink()
    before = {info.path for info in cache.objects.walk()}
    group = cache.commit(key).group
    repair(cache, verify(cache))
    after = {info.path for info in cache.objects.walk()}
    assert before - after == {key.commit_path} | {path for path in before if path.startswith(group)}


def test_a_repaired_and_rebuilt_cache_verifies(cache: Cache, write_targets: Callable[..., Commit]) -> None:
    file_of(cache, TARGETS).unlink()
    repair(cache, verify(cache))
    write_targets(cache, 1)
    assert (verify(cache).shards, verify(cache).bad) == (6, ())


def test_repair_drops_a_commit_that_cannot_be_read(cache: Cache) -> None:
    (Path(cache.url) / TARGETS.commit_path).write_bytes(b"")
    repair(cache, verify(cache))
    assert cache.committed("digits", "cnn") == {0, 2}


def test_repair_leaves_the_attempt_of_a_running_build(cache: Cache) -> None:
    file_of(cache, TARGETS).unlink()
    running = f"{TARGETS.folder}/00001-0123abcd.zarr.zip"
    cache.objects.put(running, b"half of a shard")
    repair(cache, verify(cache))
    assert cache.objects.get(running) == b"half of a shard"


def test_repair_leaves_a_shard_that_was_rebuilt_meanwhile(cache: Cache, write_targets: Callable[..., Commit]) -> None:
    file_of(cache, TARGETS).unlink()
    found = verify(cache)
    cache.objects.delete(TARGETS.commit_path)
    write_targets(cache, 1)
    repair(cache, found)
    assert cache.committed("digits", "cnn") == {0, 1, 2}


def test_repairing_a_whole_cache_changes_nothing(cache: Cache) -> None:
    before = {info.path: info.version for info in cache.objects.walk()}
    repair(cache, verify(cache))
    assert {info.path: info.version for info in cache.objects.walk()} == before


# --- garbage


@pytest.fixture(params=["00001-0123abcd.zarr.zip", "00001-0123abcd.zarr"], ids=["format 3", "format 2"])
def abandon(request: pytest.FixtureRequest) -> Callable[[Cache, float], str]:
    """Leave a Zarr group without a commit behind, as a killed worker does; return it."""

    def leave(cache: Cache, age_s: float) -> str:
        group = f"{TARGETS.folder}/{request.param}"
        for path in [group] if group.endswith(".zip") else [f"{group}/zarr.json", f"{group}/logits/c/0/0"]:
            cache.objects.put(path, b"x")
            os.utime(Path(cache.url) / path, (time.time() - age_s,) * 2)
        return group

    return leave


def test_garbage_older_than_a_day_is_found_and_collected(cache: Cache, abandon: Callable[[Cache, float], str]) -> None:
    before = [info.path for info in cache.objects.walk()]
    group = abandon(cache, GRACE_S + 60)
    found = verify(cache)
    repair(cache, found)
    after = [info.path for info in cache.objects.walk()]
    assert (found.garbage, after, verify(cache).bad) == ((group,), before, ())


def test_garbage_younger_than_a_day_is_kept(cache: Cache, abandon: Callable[[Cache, float], str]) -> None:
    abandon(cache, GRACE_S - 60)
    before = [info.path for info in cache.objects.walk()]
    repair(cache, verify(cache))
    assert [info.path for info in cache.objects.walk()] == before


def test_one_young_object_keeps_its_whole_group_of_format_2(cache: Cache) -> None:
    group = f"{TARGETS.folder}/00001-0123abcd.zarr"
    cache.objects.put(f"{group}/zarr.json", b"x")
    make_older(Path(cache.url) / group, GRACE_S + 60)
    cache.objects.put(f"{group}/feature/x/c/0/0", b"just now")
    assert verify(cache).garbage == ()


def test_committed_groups_are_never_garbage(cache: Cache) -> None:
    make_older(Path(cache.url), 10 * GRACE_S)
    assert verify(cache).garbage == ()


def test_folders_of_other_names_are_never_garbage(cache: Cache) -> None:
    for name in ("notes", "00001-backup.zarr", "00001-0123abcd.zarr.old"):
        cache.objects.put(f"{TARGETS.folder}/{name}/x", b"")
    for name in ("00001-backup.zarr.zip", "00001-0123abcd.zarr.zip.old", "00001-0123abcd.zip"):
        cache.objects.put(f"{TARGETS.folder}/{name}", b"")
    make_older(Path(cache.url), 10 * GRACE_S)
    assert verify(cache).garbage == ()


def test_what_killed_writes_left_is_swept_after_a_day(cache: Cache) -> None:
    folder = Path(cache.url) / "digits/ingest"
    old, young = folder / f"{TEMPORARY_PREFIX}old", folder / f"{TEMPORARY_PREFIX}young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - GRACE_S - 60,) * 2)
    repair(cache, verify(cache))
    assert (old.exists(), young.exists()) == (False, True)


def test_a_commit_names_what_the_format_says(cache: Cache) -> None:
    about: dict[str, Any] = unseal(cache.objects.get(TARGETS.commit_path)).about
    keys = ["about", "attempt", "cache", "dataset", "key", "members", "object", "promise", "rows", "uses"]
    assert sorted(about) == keys


def test_a_ledger_that_says_of_commits_what_they_do_not_is_named_and_goes(cache: Cache, program: Program) -> None:
    cache.catalogue().ledger().compact()
    path = "ledger/00000000.parquet"
    about, table = unseal(cache.objects.get(path))
    rows = table.column("rows").to_pylist()
    assert verify(cache).untrue == ()
    forged = table.set_column(table.schema.get_field_index("rows"), "rows", pa.array([rows[0] + 5, *rows[1:]]))
    cache.objects.put(path, seal(forged, about))
    assert cache.catalogue().ledger().new == 0, "it is believed: its digest is right, and its figures can be"
    found = verify(cache)
    assert (found.bad, found.untrue) == ((), (path,))
    ended = program("cache", "verify", cache.url)
    assert (ended.code, f"bad  {path}" in ended.out) == (65, True), ended.out
    assert program("cache", "verify", cache.url, "--repair").code == 0
    assert (program("cache", "verify", cache.url).code, cache.catalogue().ledger().new) == (0, 6)


class Far(LocalObjects):
    """A folder that answers after a while.

    Attributes:
        most: requests that travelled at a time.
    """

    latency_s = 0.02

    def __init__(self, root: str):
        super().__init__(root)
        self.most = self.travelling = 0
        self._lock = Lock()

    def get(self, path: str, most_bytes: int | None = None) -> bytes:
        with self._lock:
            self.travelling += 1
            self.most = max(self.most, self.travelling)
        time.sleep(self.latency_s)
        with self._lock:
            self.travelling -= 1
        return super().get(path, most_bytes)


def test_of_a_far_store_as_many_shards_are_checked_at_a_time_as_its_latency_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = write_cache(tmp_path, Recipe(rows=32 * 4, rows_per_shard=4))
    flip(near, ShardKey("toy", None, "plain", 9))
    expected = verify(near)
    assert [bad.key.shard for bad in expected.bad] == [9]
    far = Far(near.url)
    assert verify(Cache(far, near.spec)) == expected
    assert READERS < far.most <= READERS + num_ahead(far.latency_s, 1)
    monkeypatch.setattr("storage.format.stores.base.AHEAD_BYTES", 1)  # large shards
    far = Far(near.url)
    assert verify(Cache(far, near.spec)) == expected
    assert far.most <= READERS
