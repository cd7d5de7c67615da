"""The ledger grows by segments: nothing is lost or counted twice, whoever writes beside whom, and little is written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from math import log2
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from storage.cache import Cache
from storage.format.ledger import Ledger, remember, segments
from storage.format.ledger.segments import SUMMARY_SCHEMA, append, list_segments, read_segments
from storage.format.objects import LocalObjects, Objects
from storage.format.sealed import seal, unseal
from storage.format.shards import Commit, ShardKey
from storage.format.stages import look_at_stages
from tests.counting import Counting
from tests.summaries import everything

LEDGER = "ledger/00000000.parquet"


def load(objects: Objects) -> Ledger:
    """Return the ledger of what is there now."""
    listed = {stage: shards for each in look_at_stages(objects) for stage, shards in each.commits.items()}
    return Ledger.load(objects, listed, lambda commit: commit)


def summaries(first: int, stop: int, **columns: Any) -> pl.DataFrame:
    """Return summaries of shards that are nowhere else."""
    shards = pl.int_range(first, stop, eager=True)
    table = pl.DataFrame({"shard": shards, "version": shards.cast(pl.String)})
    said = {"path": "", "dataset": "d", "teacher": None, "view": "plain", "rows": 2, "quarantined": 0, "bytes": 9}
    said |= (
        dict.fromkeys(("labelled", "correct", "nats", "never", "two_classes", "labels"))
        | {"seconds": 1.5, "finished": ""}
        | columns
    )
    table = table.with_columns(pl.lit(value, SUMMARY_SCHEMA[name]).alias(name) for name, value in said.items())
    return table.select(*SUMMARY_SCHEMA)


def shards_of(objects: Objects) -> list[int]:
    """Return the number of each summary of all segments, ascending; one that is told twice stands twice."""
    tables = [segment.summaries(["shard"]) for segment in read_segments(objects)]
    return sorted(shard for table in tables if table is not None for shard in table["shard"])


class Interrupting(LocalObjects):
    """A folder where something happens just before an object of it is read for the first time."""

    def __init__(self, root: str | Path, happens: Callable[[], Any]):
        super().__init__(root)
        self.happens: Callable[[], Any] | None = happens

    def get(self, path: str) -> bytes:
        happens, self.happens = self.happens, None
        if happens is not None:
            happens()
        return super().get(path)


# --- how it grows


def test_of_n_commits_n_log_n_bytes_are_written_and_log_n_segments_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SMALL_BYTES", 0)
    windows, rows, written, requests = 128, 40, 0, list[tuple[str, str]]()
    objects = Counting(LocalObjects(tmp_path), requests)
    for window in range(windows):
        append(objects, summaries(window * rows, (window + 1) * rows))
        (created,) = [path for verb, path in requests if verb == "create"]
        table = unseal(objects.get(created)).table
        written += len(table)
        # a list, what is taken in and deleted, and one segment
        assert len(requests) <= 2 * log2(windows) + 5
        requests.clear()
    assert written <= 2 * windows * rows * log2(
        windows
    )  # a ledger that is written whole each time: 64 * windows * rows
    assert len(list_segments(objects)) <= log2(windows) + 2
    assert shards_of(objects) == list(range(windows * rows))


def test_a_small_cache_has_one_segment(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    for window in range(5):
        append(objects, summaries(window, window + 1))
    assert [info.path for info in list_segments(objects)] == ["ledger/00000004.parquet"]


def test_a_segment_has_so_many_values_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MOST_VALUES", 40 * len(SUMMARY_SCHEMA))
    objects = LocalObjects(tmp_path)
    append(objects, summaries(0, 100))  # at once, as of a cache without a ledger
    for window in range(100, 130, 10):
        append(objects, summaries(window, window + 10))
    lengths = [len(unseal(segment.data).table) for segment in read_segments(objects)]
    assert (max(lengths) <= 40, len(lengths) <= 6, shards_of(objects)) == (True, True, list(range(130)))


def test_what_was_just_written_is_remembered_without_a_look_at_the_rest(cache: Cache) -> None:
    objects, key = Counting(cache.objects), ShardKey("digits", "cnn", "plain", 1)
    remember(objects, [key], lambda commit: commit)
    assert objects.requests == [("get", key.commit_path), ("list", "ledger"), ("create", LEDGER)]
    assert load(cache.objects).new == 5


def test_what_was_just_written_to_a_store_is_of_the_version_that_is_listed(cache: Cache, bucket: str) -> None:
    there = Cache.create(bucket)
    for info in cache.objects.walk():
        if info.path != "cache.json":
            there.objects.put(info.path, cache.objects.get(info.path))
    keys = [ShardKey(*stage, shard) for stage, found in load(there.objects).stages.items() for shard in found["shard"]]
    remember(there.objects, keys, lambda commit: commit)
    assert load(there.objects).new == 0


# --- beside others


def test_of_two_builders_at_once_both_are_remembered(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    append(objects, summaries(0, 3))
    append(Interrupting(tmp_path, lambda: append(objects, summaries(3, 5))), summaries(5, 9))
    assert set(shards_of(objects)) == set(range(9))
    append(objects, summaries(9, 10))
    assert shards_of(objects) == list(range(10))


def test_a_reader_beside_a_merge_misses_nothing(tmp_path: Path) -> None:
    objects = LocalObjects(tmp_path)
    append(objects, summaries(0, 3))
    assert set(shards_of(Interrupting(tmp_path, lambda: append(objects, summaries(3, 5))))) == set(range(5))


def test_what_two_segments_say_alike_counts_once(cache: Cache) -> None:
    whole = load(cache.objects)
    whole.compact()
    cache.objects.put("ledger/00000007.parquet", cache.objects.get(LEDGER))  # as a kill before the deletion leaves it
    again = load(cache.objects)
    assert (again.new, everything(again).equals(everything(whole))) == (0, True)


# --- what cannot be


def forge(cache: Cache, path: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Ledger:
    """Write a whole ledger, put a changed one of its own at `path`, and return the whole one."""
    whole = load(cache.objects)
    whole.compact()
    table = pl.DataFrame(pl.from_arrow(unseal(cache.objects.get(LEDGER)).table))
    cache.objects.put(path, seal(change(table).to_arrow(), {}))
    return whole


@pytest.mark.parametrize(
    "change",
    [
        lambda table: pl.concat([table, table]),
        lambda table: pl.concat([table, table.with_columns(rows=pl.col("rows") + 1)]),
        lambda table: table.with_columns(rows=-pl.col("rows")),
        lambda table: table.with_columns(quarantined=pl.lit(-1, pl.Int64)),
        lambda table: table.with_columns(quarantined=pl.col("rows") + 1),
        lambda table: table.with_columns(bytes=pl.lit(-1, pl.Int64)),
        lambda table: table.with_columns(seconds=pl.lit(float("nan"))),
        lambda table: table.with_columns(rows=pl.lit(None, pl.Int64)),
        lambda table: table.drop("labelled", "correct", "nats", "labels"),  # of an older version
        lambda table: table.with_columns(rows=pl.lit("four")),
        lambda table: table.with_columns(rows=pl.lit(2**62)),
        lambda table: table.with_columns(labelled=pl.lit(3), correct=pl.lit(4)),
        lambda table: table.with_columns(nats=pl.lit(float("nan"))),
        lambda table: table.with_columns(never=pl.lit(-1)),
        lambda table: table.with_columns(two_classes=pl.lit(1.5)),
    ],
    ids=[
        "twice",
        "otherwise",
        "negative",
        "unread",
        "too-many",
        "bytes",
        "nan",
        "null",
        "older",
        "text",
        "huge",
        "more-right",
        "no-nats",
        "never",
        "share",
    ],
)
def test_a_segment_that_contradicts_itself_is_as_if_it_were_not_there_until_it_is_replaced(
    cache: Cache, change: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    whole = forge(cache, LEDGER, change)
    again = load(cache.objects)
    assert (again.new, everything(again).equals(everything(whole))) == (6, True)
    again.compact()
    after = load(cache.objects)
    assert (after.new, everything(after).equals(everything(whole)), len(list_segments(cache.objects))) == (0, True, 1)


def test_commits_of_which_two_segments_tell_differently_are_read_again(cache: Cache) -> None:
    whole = forge(
        cache,
        "ledger/00000007.parquet",
        lambda table: table.with_columns(rows=pl.when(pl.col("shard") == 1).then(1).otherwise("rows")),
    )
    again = load(cache.objects)
    assert (again.new, everything(again).equals(everything(whole))) == (2, True)


@pytest.mark.parametrize("labels", [[None, 1, 2], [-1, 4, 1], [2**62, 1, 1]], ids=["null", "negative", "huge"])
def test_counts_of_labels_that_cannot_be_are_none(cache: Cache, labels: list[int | None]) -> None:
    said = pl.lit(labels, pl.List(pl.Int64))
    forge(cache, LEDGER, lambda table: table.with_columns(labels=said))
    assert load(cache.objects).labels("digits") == []


def test_of_commits_that_are_gone_nothing_stays(cache: Cache) -> None:
    append(cache.objects, summaries(0, 9))
    append(cache.objects, summaries(0, 9, dataset="digits"))
    load(cache.objects).compact()
    # `d` is no dataset that was looked at; its summaries are another's to judge
    assert sorted(shards_of(cache.objects)) == sorted([*range(9), 0, 0, 1, 1, 2, 2])


def test_labels_are_summed_over_segments_and_what_is_read(cache: Cache) -> None:
    for shard, labels in enumerate([[1, 2, 0], [10, 0, 5], [100, 0, 0]]):
        commit = cache.commit(ShardKey("digits", None, "plain", shard), with_table=True)
        about = commit.about | {"labels": labels}
        altered = Commit(**{**vars(commit), "about": about})
        cache.objects.put(commit.key.commit_path, altered.to_parquet())
        if shard < 2:
            remember(cache.objects, [commit.key], lambda commit: commit)
    assert load(cache.objects).labels("digits") == [111, 2, 5]


HOLD = """
import sys
import polars as pl
import psutil
from storage.format.ledger import Ledger
from storage.format.objects import LocalObjects
from storage.format.shards import Committed

shards = pl.int_range(0, int(sys.argv[2]), eager=True)
table = pl.DataFrame({"shard": shards, "version": pl.select(pl.format("18c5f2e1a3b4c5d6-{}", shards)).to_series()})
listed = {("d", teacher, "plain"): Committed(table) for teacher in (None, "t")}


def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))


before = peak()
ledger = Ledger.load(LocalObjects(sys.argv[1]), listed, lambda commit: commit)
print(ledger.new, (peak() - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.alone
def test_what_reading_a_ledger_holds_is_bounded_by_its_figures(tmp_path: Path) -> None:
    """255 bytes a shard as it is; 615 where names and versions of all segments lie beside what they are joined to."""
    objects, number, count = LocalObjects(tmp_path), 400_000, 0
    for teacher in (None, "t"):
        for first in range(0, number, 100_000):
            table = summaries(first, first + 100_000, teacher=teacher)
            versions = pl.format("18c5f2e1a3b4c5d6-{}", pl.col("shard"))
            assert objects.create(
                f"ledger/{count:08d}.parquet", seal(table.with_columns(version=versions).to_arrow(), {})
            )
            count += 1
    ended = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path), str(number)], capture_output=True, check=True)
    new, held = map(int, ended.stdout.split())
    assert new == 0
    assert held / (2 * number) < 430
