from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage.cache import Cache
from storage.encodings import Capability
from storage.errors import BadRequest, IncompleteCache, NotInCache
from storage.format.rows import ranges
from student_train.feed.batches import Needs, SoftNeed
from student_train.feed.selection import NO_CLASS, Selection, select_rows
from tests.student_train.toys import Recipe, write_cache

TAUGHT = Needs(soft=frozenset([SoftNeed("sage", Capability("bucket", 1.0))]))


def selected(cache: Cache, rows: str, needs: Needs, **options: Any) -> Selection:
    """Return the rows that are selected of a cache as it is now."""
    return select_rows(cache.samples(), rows, needs, **options)


def test_only_rows_of_the_split_are_fed(tmp_path: Path) -> None:
    selection = selected(write_cache(tmp_path, Recipe(rows=20, rows_per_shard=8)), "toy/validation", Needs())
    assert [rows.tolist() for rows in selection.rows] == [[4], [1, 6], [3]]


def test_a_dataset_without_a_split_is_all_of_it(tmp_path: Path) -> None:
    assert selected(write_cache(tmp_path, Recipe(rows=20)), "toy", Needs()).num_rows == 20


def test_unreadable_rows_are_never_fed(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(rows=10, rows_per_shard=5, unreadable=frozenset({0, 1, 2, 3, 8})))
    selection = selected(cache, "toy/train", Needs())
    assert (selection.shards_S, [rows.tolist() for rows in selection.rows]) == ((1,), [[0, 1, 2]])


def test_a_half_built_cache_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    recipe = Recipe(no_ingest=frozenset({1}), no_teacher=frozenset({0, 2, 3}))
    with pytest.raises(IncompleteCache) as refusal:
        selected(write_cache(tmp_path, recipe), "toy/train", Needs())
    assert refusal.value.found == "ingest: no shard 1"


def test_a_half_taught_cache_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(no_teacher=frozenset({0, 2, 3})))
    with pytest.raises(IncompleteCache) as refusal:
        selected(cache, "toy/train", TAUGHT)
    assert str(refusal.value) == (
        f"IncompleteCache: {tmp_path}: toy is only half built\n"
        "  found     teacher sage: no shard 0, 2 to 3\n"
        "  expected  all 5 shards\n"
        "  do        cache build JOB.toml    "
        "# finishes it; or allow_partial = true, to train on the rows that are there"
    )


def test_missing_shards_of_a_teacher_that_is_not_needed_do_not_matter(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(no_teacher=frozenset({0, 2, 3})))
    assert selected(cache, "toy/train", Needs(labels=True)).num_rows == 192


def test_partial_training_is_on_the_committed_rows_only(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(no_ingest=frozenset({1}), no_teacher=frozenset({0, 2})))
    assert selected(cache, "toy/train", TAUGHT, allow_partial=True).shards_S == (3, 4)


@pytest.mark.parametrize("allow_partial", [False, True])
def test_an_empty_cache_is_refused_even_in_part(tmp_path: Path, allow_partial: bool) -> None:
    cache = write_cache(tmp_path, Recipe(no_ingest=frozenset(range(5)), no_teacher=frozenset(range(5))))
    with pytest.raises(IncompleteCache, match="half built"):
        selected(cache, "toy/train", Needs(), allow_partial=allow_partial)


def test_an_unknown_dataset_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(NotInCache, match="toy"):
        selected(write_cache(tmp_path, Recipe()), "digits/train", Needs())


def test_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotInCache, match="3 of 'train'"):
        selected(write_cache(tmp_path, Recipe(rows=3)), "toy/validation", Needs())


def test_rows_without_a_label_are_refused_for_a_label_loss(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(unlabelled=frozenset({0, 7})))
    with pytest.raises(BadRequest, match="2 of 192 rows of toy/train have none") as refusal:
        selected(cache, "toy/train", Needs(labels=True))
    assert refusal.value.found == "toy-0, toy-7"


def test_rows_without_a_label_can_be_taught(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(unlabelled=frozenset({0, 7})))
    assert (selected(cache, "toy/train", TAUGHT).labels_N == NO_CLASS).sum() == 2


def test_the_fingerprint_is_of_the_rows_that_are_fed(tmp_path: Path) -> None:
    whole = write_cache(tmp_path / "a", Recipe())
    copy = write_cache(tmp_path / "b", Recipe())
    part = write_cache(tmp_path / "c", Recipe(unreadable=frozenset({3})))
    a, b, c = (selected(cache, "toy/train", Needs()).fingerprint for cache in (whole, copy, part))
    assert (a == b, a == c) == (True, False)


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([4], "4"), ([5, 3, 4, 0], "0, 3 to 5")])
def test_missing_shards_are_written_as_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
