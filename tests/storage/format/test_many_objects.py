"""Many objects: a hundred thousand are listed, a thousand at a time as they are needed; small ones come together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from storage.cache import Cache
from storage.cache.garbage import Garbage, delete_garbage, find_garbage
from storage.format.objects import RemoteObjects, num_at_once
from storage.format.rows import Segment, create_segment
from storage.format.shards import ShardKey
from storage.format.specs import DatasetSpec
from tests.s3_folder import FolderStore, s3_folder, variables

MANY = 100_000


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RemoteObjects, FolderStore]]:
    """Yield a store whose folder `d/e` has so many objects, which share one file, and what it is asked."""
    (tmp_path / "d/e").mkdir(parents=True)
    for name in ("d/a", "d/z"):
        (tmp_path / name).write_bytes(b"1")
    with s3_folder(tmp_path) as (address, known):
        for name, value in variables(address).items():
            monkeypatch.setenv(name, value)
        known.names[1:1] = [f"d/e/{i:07d}" for i in range(MANY)]
        monkeypatch.setattr(FolderStore, "file", lambda store, name: tmp_path / "d/a")
        yield RemoteObjects("s3://bucket"), known


@pytest.mark.slow
def test_all_are_listed_and_pages_are_asked_for_as_they_are_needed(many: tuple[RemoteObjects, FolderStore]) -> None:
    store, known = many
    for count, info in enumerate(store.walk("d/e")):
        assert info.path == f"d/e/{count:07d}"
        assert known.pages <= count // 1000 + 3  # what is asked for ahead is held
    assert (count + 1, known.pages) == (MANY, MANY // 1000)


@pytest.mark.slow
def test_a_folder_is_listed_without_what_lies_deeper(many: tuple[RemoteObjects, FolderStore]) -> None:
    store, known = many
    listing = store.list("d")
    assert ([info.path for info in listing.objects], listing.folders) == (["d/a", "d/z"], ["d/e"])
    assert known.pages == 1
    assert sum(1 for _ in store.versions("d/e", re.compile(r"\d{7}"))) == MANY


def test_small_objects_are_asked_for_side_by_side_by_how_far_away_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache.create(str(tmp_path / "cache"))
    write_shards(cache, 100)
    with s3_folder(tmp_path, latency_s=0.02) as (address, known):
        for name, value in variables(address).items():
            monkeypatch.setenv(name, value)
        there = Cache.open("s3://bucket/cache")
        assert len(there.catalogue().ledger().of("d", None, "plain")) == 100
        assert 0.02 <= there.objects.latency_s < 1, "and no page of a list that was there already"
        assert 8 < known.most <= num_at_once(there.objects) <= 64
        there.objects.put("d/ingest/00007-00000000.zarr.zip", b"left behind")
        waste = find_garbage(there, grace_s=-60).old
        assert [each.path for each in delete_garbage(there, waste)] == ["d/ingest/00007-00000000.zarr.zip"]
        assert find_garbage(there, grace_s=-60).old == ()
    assert num_at_once(cache.objects) == 8


def test_gc_lists_a_stage_twice_and_reads_no_commit(tmp_path: Path, requests: list[tuple[str, str]]) -> None:
    cache = Cache.create(str(tmp_path / "cache"))
    write_shards(cache, 5)
    requests.clear()
    assert find_garbage(cache) == Garbage((), (), ())
    assert [each for each in requests if "ingest" in each[1]] == [("list", "d/ingest"), ("walk", "d/ingest")]


def write_shards(cache: Cache, count: int) -> None:
    """Write the ingest of a dataset of shards of one row."""
    spec = DatasetSpec(name="d", source={}, classes=["a"], input_shape=(1,), input_dtype="uint8")
    cache.objects.put("d/dataset.json", spec.to_json())
    extents = pl.DataFrame({"file": ["f"], "size": [1], "version": ["v"], "position": [0], "rows": [count]})
    create_segment(cache.objects, "d", 0, Segment(extents, 1))
    for shard in range(count):
        cache.write_shard(
            ShardKey("d", None, "plain", shard),
            rows=(shard, shard + 1),
            arrays={"inputs": np.zeros((1, 1), np.uint8)},
            table=pa.table({"row": pa.array([shard], pa.int64())}),
            about={"seconds": 1.0, "inputs_digest": ""},
        )
