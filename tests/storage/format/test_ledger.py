"""The ledger is a memory, never an authority."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage.cache import Cache
from storage.format.ledger import Ledger
from storage.format.objects import LocalObjects, Objects
from storage.format.shards import Commit, ShardKey, stage_folder
from storage.format.stages import list_stages, look_at_stages
from tests.summaries import everything


class Counting(LocalObjects):
    """A folder that remembers which objects were read."""

    def __init__(self, root: str | Path):
        super().__init__(root)
        self.read: list[str] = []

    def get(self, path: str) -> bytes:
        self.read.append(path)
        return super().get(path)


def load(objects: Objects, *datasets: str) -> Ledger:
    """Return the ledger of what is there now."""
    found = look_at_stages(objects, datasets or None)
    listed = {stage: shards for each in found for stage, shards in each.commits.items()}
    return Ledger.load(objects, listed, lambda commit: commit)


def test_the_stages_of_a_cache_are_found(cache: Cache) -> None:
    assert list_stages(cache.objects) == [("digits", None, "plain"), ("digits", "cnn", "plain")]


def test_a_summary_says_what_a_commit_holds(cache: Cache) -> None:
    commit = cache.commit(ShardKey("digits", None, "plain", 0))
    row = load(cache.objects).of("digits", None, "plain").row(0, named=True)
    assert row == {
        "shard": 0,
        "rows": 4,
        "quarantined": 1,
        "bytes": (Path(cache.url) / commit.group).stat().st_size,
        "seconds": 0.5,
        **dict.fromkeys(("labelled", "correct", "nats", "never", "two_classes")),
    }


def test_one_stage_can_be_asked_for(cache: Cache) -> None:
    ledger = load(cache.objects)
    assert (
        ledger.of("digits", None, "plain")["rows"].to_list(),
        ledger.of("digits", "cnn", "plain")["shard"].to_list(),
    ) == (
        [4, 4, 2],
        [0, 1, 2],
    )


def test_a_compacted_ledger_equals_reading_every_commit(cache: Cache) -> None:
    read = load(cache.objects)
    read.compact()
    remembered = load(cache.objects)
    assert (everything(remembered).equals(everything(read)), read.new, remembered.new) == (True, 6, 0)


def test_after_compaction_no_commit_is_read(cache: Cache) -> None:
    load(cache.objects).compact()
    objects = Counting(cache.url)
    load(objects)
    assert objects.read == ["ledger/00000000.parquet"]


def test_only_new_commits_are_read(cache: Cache) -> None:
    held = cache.objects.get("digits/cnn/plain/00002.parquet")
    cache.objects.delete("digits/cnn/plain/00002.parquet")
    load(cache.objects).compact()
    cache.objects.put("digits/cnn/plain/00002.parquet", held)
    objects = Counting(cache.url)
    assert (load(objects).new, objects.read[1:]) == (1, ["digits/cnn/plain/00002.parquet"])


def test_a_commit_that_is_gone_is_not_remembered(cache: Cache) -> None:
    load(cache.objects).compact()
    cache.objects.delete("digits/cnn/plain/00002.parquet")
    assert load(cache.objects).of("digits", "cnn", "plain")["shard"].to_list() == [0, 1]


def test_a_shard_built_again_is_read_again(cache: Cache, write_ingest: Any) -> None:
    load(cache.objects).compact()
    path = "digits/ingest/00002.parquet"
    cache.objects.delete(path)
    write_ingest(cache, 2, 8, 10, seed=1)
    objects = Counting(cache.url)
    load(objects)
    assert objects.read[1:] == [path]


def test_compaction_keeps_one_file(cache: Cache, write_ingest: Any) -> None:
    load(cache.objects).compact()
    cache.objects.delete("digits/ingest/00002.parquet")
    write_ingest(cache, 2, 8, 10)
    load(cache.objects).compact()
    assert [info.path for info in cache.objects.list("ledger").objects] == ["ledger/00000001.parquet"]


def test_nothing_new_writes_nothing(cache: Cache) -> None:
    for _ in range(2):
        load(cache.objects).compact()
    assert [info.path for info in cache.objects.list("ledger").objects] == ["ledger/00000000.parquet"]


def test_of_two_compactions_at_once_one_does_nothing(cache: Cache) -> None:
    first, second = load(cache.objects), load(cache.objects)
    first.compact()
    second.compact()
    assert everything(load(cache.objects)).equals(everything(first))


@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_damaged_ledger_is_ignored(cache: Cache, length: int) -> None:
    ledger = load(cache.objects)
    ledger.compact()
    cache.objects.put("ledger/00000000.parquet", cache.objects.get("ledger/00000000.parquet")[:length])
    again = load(cache.objects)
    assert (again.new, everything(again).equals(everything(ledger))) == (6, True)


def test_no_flipped_byte_of_a_ledger_changes_a_summary(cache: Cache) -> None:
    ledger = load(cache.objects)
    ledger.compact()
    data = cache.objects.get("ledger/00000000.parquet")
    for i in range(0, len(data), 97):
        cache.objects.put("ledger/00000000.parquet", data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        assert everything(load(cache.objects)).equals(everything(ledger))


def test_a_foreign_file_in_the_ledger_is_left_alone(cache: Cache) -> None:
    cache.objects.put("ledger/.DS_Store", b"")
    load(cache.objects).compact()
    assert [info.path for info in cache.objects.list("ledger").objects] == [
        "ledger/.DS_Store",
        "ledger/00000000.parquet",
    ]


def test_a_copied_cache_is_read_afresh_and_right(cache: Cache, tmp_path: Path) -> None:
    ledger = load(cache.objects)
    ledger.compact()
    shutil.copytree(cache.url, tmp_path / "copy", copy_function=shutil.copyfile)  # new times, so new versions
    again = load(LocalObjects(tmp_path / "copy"))
    assert everything(again).equals(everything(ledger))


def test_an_empty_cache_has_an_empty_ledger(tmp_path: Path) -> None:
    ledger = load(Cache.create(str(tmp_path / "new")).objects)
    assert (len(everything(ledger)), ledger.new) == (0, 0)


@pytest.mark.slow
def test_twenty_thousand_commits_load_without_reading_one(tmp_path: Path, dataset_spec: Any) -> None:
    objects = Counting(tmp_path)
    objects.put("digits/dataset.json", dataset_spec.to_json())
    folder = tmp_path / stage_folder("digits", None)
    folder.mkdir(parents=True)
    for shard in range(20_000):  # without a sync each: the disk is not what is tested
        key = ShardKey("digits", None, "plain", shard)
        table = pa.table({"row": pa.array([shard], pa.int64())})
        (tmp_path / key.commit_path).write_bytes(Commit(key, shard, shard + 1, "00000000", (), table).to_parquet())
    load(objects).compact()
    objects.read.clear()
    ledger = load(objects)
    assert (everything(ledger)["rows"].sum(), objects.read) == (20_000, ["ledger/00000000.parquet"])
