"""A shard that was made elsewhere, or under another promise, is refused on every way in, and both are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.cache import Cache
from storage.cache.query import query_samples
from storage.cache.status import read_info, read_status
from storage.cache.verify import repair, verify
from storage.errors import CorruptObject
from storage.format.committing import write_shard
from storage.format.rows import Segment, create_segment
from storage.format.shards import Commit, ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec, write_spec

INGEST = ShardKey("digits", None, "plain", 1)
TARGETS = ShardKey("digits", "cnn", "plain", 1)

WAYS_IN: dict[str, tuple[ShardKey, Callable[[Cache], Any]]] = {
    "commit": (INGEST, lambda cache: cache.commit(INGEST)),
    "commits": (INGEST, lambda cache: cache.catalogue().read_commits("digits")),
    "inputs": (INGEST, lambda cache: cache.read_inputs("digits", 1)),
    "samples": (INGEST, lambda cache: cache.samples().of("digits")),
    "quarantined": (INGEST, lambda cache: cache.samples().quarantined("digits")),
    "duplicates": (INGEST, lambda cache: cache.samples().duplicates("digits")),
    "status": (INGEST, lambda cache: read_status(cache.catalogue())),
    "query": (INGEST, lambda cache: query_samples(cache, "SELECT row FROM samples")),
    "targets": (TARGETS, lambda cache: cache.read_targets("digits", "cnn", 1)),
    "samples of a teacher": (TARGETS, lambda cache: cache.samples().of("digits", ["cnn"])),
    "status of targets": (TARGETS, lambda cache: read_status(cache.catalogue())),
    "info": (TARGETS._replace(shard=0), lambda cache: read_info(cache.catalogue())),
}


@pytest.fixture
def other(
    tmp_path: Path,
    dataset_spec: DatasetSpec,
    teacher_spec: TeacherSpec,
    segment: Callable[..., Segment],
    write_ingest: Callable[..., Commit],
    write_targets: Callable[..., Commit],
) -> Callable[..., Cache]:
    """Return another cache of the same rows, promised as these changes have it."""

    def make(dataset: dict[str, Any] | None = None, teacher: dict[str, Any] | None = None) -> Cache:
        cache = Cache.create(str(tmp_path / "other"))
        write_spec(cache.objects, "digits/dataset.json", dataset_spec.model_copy(update=dataset or {}), "test")
        create_segment(cache.objects, "digits", 0, segment(("a", 0, 10)))
        write_spec(cache.objects, "digits/cnn/teacher.json", teacher_spec.model_copy(update=teacher or {}), "test")
        for shard, start, stop in cache.catalogue().shards("digits"):
            write_ingest(cache, shard, start, stop)
            write_targets(cache, shard)
        return cache

    return make


def exchange(cache: Cache, other: Cache, key: ShardKey) -> Commit:
    """Put another cache's shard, its arrays and its commit, in the place of this one's; return its commit."""
    commit = other.commit(key)
    for path in (commit.group, key.commit_path):
        cache.objects.put(path, other.objects.get(path))
    return commit


@pytest.mark.parametrize(("key", "read"), WAYS_IN.values(), ids=WAYS_IN)
def test_a_shard_of_another_cache_is_refused_on_every_way_in(
    cache: Cache, other: Callable[..., Cache], key: ShardKey, read: Callable[[Cache], Any]
) -> None:
    foreign = other()
    exchange(cache, foreign, key)
    with pytest.raises(CorruptObject) as caught:
        read(Cache.open(cache.url))
    assert (caught.value.what, caught.value.found, caught.value.expected, caught.value.do) == (
        f"{cache.url}: {key} is a shard of another cache",
        f"cache {foreign.id}",
        f"cache {cache.id}",
        f"cache verify {cache.url} --repair, then cache build JOB.toml",
    )


def test_verify_finds_a_shard_of_another_cache_and_repair_drops_it(
    cache: Cache, other: Callable[..., Cache], write_targets: Callable[..., Commit]
) -> None:
    commit = exchange(cache, other(), TARGETS)
    found = verify(cache)
    assert [shard.key for shard in found.bad] == [TARGETS]
    repair(cache, found)
    paths = {info.path for info in cache.objects.walk()}
    assert paths.isdisjoint({commit.group, TARGETS.commit_path})
    write_targets(cache, 1)
    assert verify(cache).bad == ()


@pytest.mark.parametrize("change", [{"source": {"kind": "digits", "seed": 1}}, {"classes": ["a", "b", "c"]}])
@pytest.mark.parametrize("key", [INGEST, TARGETS], ids=str)
def test_a_shard_of_another_dataset_json_is_refused(
    cache: Cache, other: Callable[..., Cache], key: ShardKey, change: dict[str, Any]
) -> None:
    """Such as of another seed or share of `validation`, which would train on rows that are held out here."""
    foreign = other(dataset=change)
    foreign.objects.put("cache.json", cache.objects.get("cache.json"))  # a copy of this cache, promised anew
    said = _of_cache(cache, foreign, key)
    with pytest.raises(CorruptObject) as caught:
        cache.commit(key)
    assert (caught.value.what, caught.value.found, caught.value.expected) == (
        f"{cache.url}: {key} is of another dataset than dataset.json promises",
        f"dataset fingerprint {said.belonging.dataset if said.belonging else None}",
        f"dataset fingerprint {cache.dataset('digits').fingerprint}",
    )


def test_targets_of_another_teacher_json_are_refused_by_whoever_reads_them(
    cache: Cache, other: Callable[..., Cache], teacher_spec: TeacherSpec
) -> None:
    change = {"model": {"factory": "cnn:build", "weights": "cd34"}}
    _of_cache(cache, other(teacher=change), TARGETS)
    with pytest.raises(CorruptObject) as caught:
        cache.read_targets("digits", "cnn", 1)
    assert (caught.value.what, caught.value.found, caught.value.expected) == (
        f"{cache.url}: {TARGETS} was made by another teacher than teacher.json promises",
        f"teacher fingerprint {teacher_spec.model_copy(update=change).fingerprint}",
        f"teacher fingerprint {teacher_spec.fingerprint}",
    )


def _of_cache(cache: Cache, foreign: Cache, key: ShardKey) -> Commit:
    """Write a shard of another cache as if it had been made under this cache's id; return its commit."""
    was = foreign.unchecked_commit(key, with_table=True)
    assert was.belonging is not None
    cache.objects.delete(key.commit_path)
    made = write_shard(
        cache.objects,
        key,
        rows=(was.start, was.stop),
        arrays=cache_arrays(foreign, key),
        table=was.table,
        about=was.about,
        belonging=was.belonging._replace(cache=cache.id),
    )
    assert made is not None
    return made


def cache_arrays(cache: Cache, key: ShardKey) -> dict[str, np.ndarray]:
    fresh = Cache(cache.objects, cache.spec)
    if key.teacher is None:
        return {"inputs": fresh.read_inputs(key.dataset, key.shard)}
    return fresh.read_targets(key.dataset, key.teacher, key.shard, names=["logits", "feature/last"])


def test_a_shard_as_format_2_has_it_is_foreign_in_a_cache_of_format_3(cache: Cache) -> None:
    was = cache.commit(TARGETS, with_table=True)
    arrays = cache_arrays(cache, TARGETS)
    cache.objects.delete(TARGETS.commit_path)
    facts: dict[str, Any] = {"rows": (4, 8), "arrays": arrays, "table": was.table, "about": was.about}
    write_shard(cache.objects, TARGETS, belonging=None, **facts)
    with pytest.raises(CorruptObject) as caught:
        cache.read_targets("digits", "cnn", 1)
    assert (caught.value.found, caught.value.expected) == ("layout of format 2", "layout of format 3")


def test_a_shard_of_format_3_is_foreign_in_a_cache_of_format_2(cache: Cache) -> None:
    old = Cache(cache.objects, cache.spec.model_copy(update={"format": 2}))
    with pytest.raises(CorruptObject) as caught:
        old.commit(TARGETS)
    assert (caught.value.found, caught.value.expected) == ("layout of format 3", "layout of format 2")


@pytest.mark.parametrize("path", ["cache.json", "digits/dataset.json", "digits/cnn/teacher.json"])
def test_a_promise_in_the_place_of_another_is_the_suspect_and_no_shard_is_blamed(
    cache: Cache, other: Callable[..., Cache], path: str
) -> None:
    foreign = other(dataset={"classes": ["a", "b", "c"]}, teacher={"model": {"weights": "cd34"}})
    cache.objects.put(path, foreign.objects.get(path))
    with pytest.raises(CorruptObject) as caught:
        verify(Cache.open(cache.url))
    assert (caught.value.what, caught.value.do) == (
        f"{cache.url}/{path} is not that of its shards",
        "restore it from a copy of the cache",
    )


def test_a_copied_cache_is_the_same_cache(cache: Cache, tmp_path: Path) -> None:
    shutil.copytree(cache.url, tmp_path / "copy")
    assert verify(Cache.open(str(tmp_path / "copy"))).bad == ()


def test_promises_are_read_once_however_many_shards_are(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    inner = type(cache.objects).get
    monkeypatch.setattr(type(cache.objects), "get", lambda self, path: (read.append(path), inner(self, path))[1])
    for shard in range(3):
        cache.read_targets("digits", "cnn", shard)
    assert sorted(path for path in read if path.endswith(".json")) == ["digits/cnn/teacher.json", "digits/dataset.json"]


def test_a_cache_of_format_3_has_nothing_to_admit(cache: Cache) -> None:
    assert cache.unproven is None


def test_inputs_of_another_type_or_shape_than_promised_are_found(cache: Cache) -> None:
    was = cache.commit(INGEST, with_table=True)
    for inputs_S in (np.zeros((4, 1, 2, 3), np.uint8), np.zeros((4, 1, 2, 2), np.float32)):
        cache.objects.delete(INGEST.commit_path)
        cache.write_shard(INGEST, rows=(4, 8), arrays={"inputs": inputs_S}, table=was.table, about=was.about)
        assert "digits/ingest/00001: inputs is not what is promised" in verify(cache).bad[0].reason
