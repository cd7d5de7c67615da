"""The frozen plan: every row in one shard, boundaries that never move, extents for any rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import CorruptObject, MissingObject
from storage.format.objects import LocalObjects
from storage.format.rows import (
    EXTENT_SCHEMA,
    Extent,
    RowPlan,
    Segment,
    ShardRows,
    create_segment,
    read_plan,
    segment_path,
)

Make = Callable[..., Segment]


def make(extents: list[tuple[str, int, int]], rows_per_shard: int) -> Segment:
    rows = [(file, 1, "v", position, count) for file, position, count in extents]
    return Segment(pl.DataFrame(rows, schema=EXTENT_SCHEMA, orient="row"), rows_per_shard)


SEGMENTS = st.builds(
    make,
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.integers(0, 20)), max_size=6),
    st.integers(1, 9),
)
PLANS = st.lists(SEGMENTS, max_size=4).map(lambda segments: RowPlan(tuple(segments)))


def expanded(plan: RowPlan) -> list[tuple[str, int]]:
    """Return (file, position) of every row, one by one."""
    return [
        (file, position + i)
        for file, position, rows in plan.extents.select("file", "position", "rows").iter_rows()
        for i in range(rows)
    ]


def test_a_segment_is_cut_every_so_many_rows(segment: Make) -> None:
    plan = RowPlan((segment(("a", 0, 10)),))
    assert plan.shards() == [(0, 0, 4), (1, 4, 8), (2, 8, 10)]


def test_a_shard_does_not_span_two_segments(segment: Make) -> None:
    plan = RowPlan((segment(("a", 0, 3)), segment(("b", 0, 5), rows_per_shard=3)))
    assert plan.shards() == [(0, 0, 3), (1, 3, 6), (2, 6, 8)]


def test_a_plan_without_segments_has_no_rows() -> None:
    assert (RowPlan(()).num_rows, RowPlan(()).shards(), RowPlan(()).slice(0, 9)) == (0, [], [])


def test_a_segment_without_rows_has_no_shards(segment: Make) -> None:
    assert RowPlan((segment(("a", 5, 0)), segment(("b", 0, 2)))).shards() == [ShardRows(0, 0, 2)]


@given(PLANS)
def test_shards_cover_every_row_exactly_once(plan: RowPlan) -> None:
    rows = [row for _, start, stop in plan.shards() for row in range(start, stop)]
    assert rows == list(range(plan.num_rows))


@given(PLANS)
def test_shards_are_numbered_from_zero_and_never_empty(plan: RowPlan) -> None:
    shards = plan.shards()
    assert [shard for shard, start, stop in shards if stop > start] == list(range(len(shards)))


@given(PLANS, SEGMENTS)
def test_growth_moves_no_boundary(plan: RowPlan, more: Segment) -> None:
    before = plan.shards()
    assert RowPlan((*plan.segments, more)).shards()[: len(before)] == before


@given(PLANS, st.integers(0, 100), st.integers(0, 100))
def test_a_slice_is_what_expanding_every_row_gives(plan: RowPlan, start: int, length: int) -> None:
    extents = plan.slice(start, start + length)
    assert [(file, position + i) for file, position, rows, *_ in extents for i in range(rows)] == expanded(plan)[
        start : start + length
    ]


@given(PLANS, st.integers(0, 100), st.integers(1, 100))
def test_a_slice_holds_no_empty_extent(plan: RowPlan, start: int, length: int) -> None:
    assert [extent for extent in plan.slice(start, start + length) if extent.rows <= 0] == []


def test_a_slice_takes_parts_of_extents_at_its_ends(segment: Make) -> None:
    plan = RowPlan((segment(("a", 100, 5), ("b", 0, 5)),))
    assert plan.slice(3, 7) == [Extent("a", 103, 2, 1, "v"), Extent("b", 0, 2, 1, "v", last=False)]


def test_an_extent_carries_the_version_of_its_file_that_was_looked_at_last() -> None:
    rows = [("a", 1, "old", 0, 5), ("b", 2, "b", 0, 1), ("a", 3, "new", 0, 0)]
    plan = RowPlan((Segment(pl.DataFrame(rows, schema=EXTENT_SCHEMA, orient="row"), 4),))
    assert plan.slice(0, 6) == [Extent("a", 0, 5, 3, "new"), Extent("b", 0, 1, 2, "b")]


@settings(max_examples=25)
@given(SEGMENTS)
def test_writing_then_reading_a_segment_is_identity(tmp_path_factory: pytest.TempPathFactory, segment: Segment) -> None:
    objects = LocalObjects(tmp_path_factory.mktemp("plan"))
    create_segment(objects, "d", 0, segment)
    (back,) = read_plan(objects, "d").segments
    assert (back.extents.equals(segment.extents), back.rows_per_shard) == (True, segment.rows_per_shard)


def test_of_two_builders_one_appends(objects: LocalObjects, segment: Make) -> None:
    won = [create_segment(objects, "d", 0, segment(("a", 0, n))) for n in (1, 2)]
    assert (won, read_plan(objects, "d").num_rows) == ([True, False], 1)


def test_a_dataset_that_was_never_planned_has_no_rows(objects: LocalObjects) -> None:
    assert read_plan(objects, "d") == RowPlan(())


def test_a_missing_segment_is_an_error_and_moves_no_row(objects: LocalObjects, segment: Make) -> None:
    for number in range(3):
        create_segment(objects, "d", number, segment(("a", number, 1)))
    objects.delete(segment_path("d", 1))
    with pytest.raises(MissingObject) as caught:
        read_plan(objects, "d")
    assert (caught.value.what, caught.value.do) == (
        f"{objects.url}/d/plan/00001.parquet is not there",
        "restore it from a copy of the cache",
    )


def test_every_flipped_byte_of_a_segment_is_noticed(objects: LocalObjects, segment: Make) -> None:
    create_segment(objects, "d", 0, segment(("a", 0, 10)))
    path = Path(objects.url) / segment_path("d", 0)
    data = path.read_bytes()
    for i in range(len(data)):
        objects.get = lambda _, i=i: data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]  # type: ignore[method-assign, misc]
        with pytest.raises(CorruptObject) as caught:
            read_plan(objects, "d")
    assert caught.value.what == f"{path} is not a whole plan segment"


def test_swapped_segments_are_noticed(objects: LocalObjects, segment: Make) -> None:
    create_segment(objects, "d", 0, segment(("a", 0, 10)))
    create_segment(objects, "e", 0, segment(("b", 0, 10)))
    objects.put(segment_path("d", 0), objects.get(segment_path("e", 0)))
    with pytest.raises(CorruptObject) as caught:
        read_plan(objects, "d")
    assert caught.value.found == "it is e/plan/00000.parquet"
