from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.datasets.base import FILE_SCHEMA
from storage.encodings import DenseEncoding, SparseEncoding
from storage.format.rows import EXTENT_SCHEMA, RowPlan, Segment, ShardRows
from storage.format.specs import DatasetSpec
from teacher_cache.building.sources.cutting import default_cut
from teacher_cache.building.sources.growth import (
    TARGET_SHARD_BYTES,
    TARGET_TARGETS_BYTES,
    default_rows_per_shard,
    grow,
    missing,
)

Files = list[tuple[str, int, str, int]]

counts = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def listing(*files: tuple[str, int, str, int]) -> pl.DataFrame:
    return pl.DataFrame(list(files), schema=FILE_SCHEMA, orient="row")


def planned(*extents: tuple[str, int, str, int, int], rows_per_shard: int = 4) -> RowPlan:
    return RowPlan((Segment(pl.DataFrame(list(extents), schema=EXTENT_SCHEMA, orient="row"), rows_per_shard),))


def appended(recorded: RowPlan, files: pl.DataFrame, rows_per_shard: int = 4) -> RowPlan:
    segment = grow(recorded, files, rows_per_shard).segment
    return recorded if segment is None else RowPlan((*recorded.segments, segment))


@pytest.mark.parametrize(
    ("recorded", "files", "added", "touched", "gone"),
    [
        pytest.param([], [("a", 9, "v", 5)], [("a", 9, "v", 0, 5)], (), (), id="a new dataset"),
        pytest.param([("a", 9, "v", 0, 5)], [("a", 9, "v", 5)], None, (), (), id="nothing new"),
        pytest.param(
            [("b", 9, "v", 0, 5)], [("a", 9, "v", 2), ("b", 9, "v", 5)], [("a", 9, "v", 0, 2)], (), (), id="a new file"
        ),
        pytest.param(
            [("a", 9, "v", 0, 5)], [("a", 12, "w", 8)], [("a", 12, "w", 5, 3)], ("a",), (), id="a file that grew"
        ),
        pytest.param(
            [("a", 0, "v", 0, 5)],
            [("a", 0, "v", 8)],
            [("a", 0, "v", 5, 3)],
            (),
            (),
            id="grown, though it looks the same",
        ),
        pytest.param([("a", 9, "v", 0, 5)], [("a", 9, "w", 5)], [("a", 9, "w", 5, 0)], ("a",), (), id="a touched file"),
        pytest.param([("a", 9, "v", 0, 5)], [("b", 9, "v", 5)], None, (), ("a",), id="a file that is gone"),
        pytest.param([("a", 9, "v", 0, 5)], [("a", 9, "w", 4)], None, ("a",), ("a",), id="a file that shrank"),
        pytest.param([], [("a", 0, "v", 0)], None, (), (), id="an empty file"),
    ],
)
def test_growth(
    recorded: list[tuple[str, int, str, int, int]],
    files: Files,
    added: list[tuple[str, int, str, int, int]] | None,
    touched: tuple[str, ...],
    gone: tuple[str, ...],
) -> None:
    segment, *rest = grow(planned(*recorded) if recorded else RowPlan(()), listing(*files), 4)
    assert (None if segment is None else segment.extents.rows(), *rest) == (added, touched, gone)


def test_a_touched_file_is_recorded_once() -> None:
    files = listing(("a", 9, "w", 5))
    plan = appended(planned(("a", 9, "v", 0, 5)), files)
    assert grow(plan, files, 4) == (None, (), ())


def test_a_new_segment_keeps_the_cut_of_its_own_build() -> None:
    plan = appended(planned(("a", 9, "v", 0, 5), rows_per_shard=4), listing(("a", 9, "v", 5), ("b", 9, "v", 5)), 3)
    assert plan.shards() == [ShardRows(0, 0, 4), ShardRows(1, 4, 5), ShardRows(2, 5, 8), ShardRows(3, 8, 10)]


@given(st.lists(counts, min_size=1, max_size=4), st.integers(1, 9))
def test_growth_only_appends(growths: list[list[int]], rows_per_shard: int) -> None:
    """However a dataset grows, every earlier row keeps its sample and every earlier shard its rows."""
    plan, sizes = RowPlan(()), dict[str, int]()
    for build, more in enumerate(growths):
        for number, count in enumerate(more):
            sizes[f"{number}"] = sizes.get(f"{number}", 0) + count
        files = listing(*((file, rows, f"{rows}", rows) for file, rows in sizes.items()))
        before, plan = plan, appended(plan, files, rows_per_shard + build)
        assert plan.shards()[: len(before.shards())] == before.shards()
        was, now = ([extent[:3] for extent in each.slice(0, before.num_rows)] for each in (before, plan))
        assert now == was  # but for what is recorded of files that grew: their size and version
        rows = [
            (file, position + i) for file, position, count, *_ in plan.slice(0, plan.num_rows) for i in range(count)
        ]
        assert sorted(rows) == sorted((file, i) for file, count in sizes.items() for i in range(count))


@given(st.integers(0, 60), st.sets(st.integers(0, 59)), st.integers(1, 7))
def test_every_missing_shard_falls_to_exactly_one_part(num_shards: int, committed: set[int], parts: int) -> None:
    shards = [ShardRows(i, 10 * i, 10 * i + 10) for i in range(num_shards)]
    found = [shard for i in range(parts) for shard in missing(shards, committed, (i, parts))]
    assert sorted(found) == [shard for shard in shards if shard.shard not in committed]


def test_a_part_does_not_move_when_another_has_finished() -> None:
    shards = [ShardRows(i, i, i + 1) for i in range(6)]
    assert missing(shards, {0, 3}, (1, 3)) == missing(shards, set(), (1, 3))


@pytest.mark.parametrize(
    ("shape", "dtype", "rows"),
    [((1, 8, 8), "uint8", 2048), ((3, 512, 512), "float32", 85), ((2**15, 2**15), "uint8", 1)],
)
def test_a_shard_is_bounded_in_rows_and_bytes(shape: tuple[int, ...], dtype: str, rows: int) -> None:
    assert default_rows_per_shard(shape, dtype) == rows
    assert TARGET_SHARD_BYTES == 256 * 2**20


OF_TOKENS = {"name": "a", "source": {}, "classes": [], "input_dtype": "int32", "vocabulary": 128_256}
KEPT, ALL = SparseEncoding(k=64), DenseEncoding(dtype="fp16")
OBJECTS = 4  # a commit and a group, of the ingest and of a teacher


@pytest.mark.parametrize(
    ("length", "uses", "total", "measure"),
    [
        (1024, (), 10**9 // 1024, 1),  # blocks
        (16, (), 10**9 // 16, 1),
        (1024, ("byte_ranges",), 4 * 10**9, 4 * 1024),  # text
        (2048, ("own_length", "byte_ranges"), 4 * 10**9, 800),  # chats of 200 tokens
        (2048, ("own_length",), 10**9 // 2048, 1),
    ],
)
def test_a_billion_tokens_are_fewer_than_20_000_objects(
    length: int, uses: tuple[str, ...], total: int, measure: int
) -> None:
    spec = DatasetSpec.model_validate(OF_TOKENS | {"input_shape": (length,), "uses": uses})
    cut = default_cut(spec, total, measure, [KEPT])
    plan = appended(RowPlan(()), listing(("a", 9, "v", total)), cut)
    assert 12_000 < OBJECTS * len(plan.shards()) < 20_000


def test_a_shard_of_dense_targets_of_a_large_vocabulary_is_of_a_bounded_size() -> None:
    spec = DatasetSpec.model_validate(OF_TOKENS | {"input_shape": (256,)})
    rows = default_cut(spec, 10**6, 1, [KEPT, ALL])
    assert rows == 2
    assert rows * 256 * ALL.bytes_per_row(spec.num_classes) < 2 * TARGET_TARGETS_BYTES


def test_a_small_dataset_of_tokens_has_shards_for_many_workers() -> None:
    spec = DatasetSpec.model_validate(OF_TOKENS | {"input_shape": (512,)})
    shards = [-(-rows // default_cut(spec, rows, 1, [KEPT])) for rows in (32, 2_048, 20_000, 2_000_000)]
    assert shards == [1, 64, 65, 4099]
