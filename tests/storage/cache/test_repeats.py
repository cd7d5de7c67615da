"""Rows whose content another row has too: under another label, in another split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from storage.cache.repeats import Repeats, find_repeats
from tests.conftest import Program
from tests.teacher_cache.toys import build, write_job


def table(*rows: tuple[str, str, str, str]) -> pl.DataFrame:
    return pl.DataFrame(rows, ["sample_id", "payload_digest", "label_digest", "split"], orient="row")


def test_rows_of_one_content_are_counted_with_two_of_them() -> None:
    found = find_repeats(
        table(
            ("a", "x", "cat", "train"),
            ("b", "y", "cat", "train"),
            ("c", "x", "cat", "train"),
            ("d", "x", "cat", "train"),
        )
    )
    assert found == Repeats(2, 0, 0, repeated=("a", "c"))
    assert found.lines("pets") == ["pets: 2 rows repeat another's content, as a and c"]


def test_one_content_under_two_labels_is_a_contradiction() -> None:
    found = find_repeats(table(("a", "x", "cat", "train"), ("b", "x", "cat", "train"), ("c", "x", "dog", "train")))
    assert (found.contradictions, found.contradicting, found.leaks) == (1, ("a", "c"), 0)
    assert found.lines("pets")[1] == "warning: pets: 1 content has more than one label, as a and c"


def test_one_content_in_both_splits_leaks() -> None:
    found = find_repeats(table(("a", "x", "cat", "train"), ("b", "x", "cat", "validation")))
    assert (found.leaks, found.leaking, found.contradictions) == (1, ("a", "b"), 0)
    assert found.lines("pets")[1] == "warning: pets: 1 content is trained on and held back, both, as a and b"


def test_rows_of_one_digest_for_both_are_passed_over() -> None:
    assert find_repeats(pl.DataFrame({"sample_id": ["a"], "split": ["train"], "digest": ["x"]})) == Repeats(0, 0, 0)
    older = pl.concat([table(("a", "x", "cat", "train")), pl.DataFrame({"sample_id": ["b", "c"]})], how="diagonal")
    assert find_repeats(older) == Repeats(0, 0, 0)


def job_of(folder: Path) -> Path:
    pixels = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1) * np.ones((1, 1, 4, 4), np.uint8)
    pixels[9], pixels[11] = pixels[0], pixels[3]  # of other shards
    np.savez(folder / "rows.npz", inputs=pixels, labels=np.array([*range(9), 5, 1, 3]) % 9)
    return write_job(folder, '[[dataset]]\nname = "rows"\nkind = "arrays"\npath = "rows.npz"\nrows_per_shard = 4\n')


def test_a_build_tells_contradictions_of_all_shards_and_a_query_finds_them(tmp_path: Path, program: Program) -> None:
    report = build(job_of(tmp_path))
    assert report.repeats == [
        "rows: 2 rows repeat another's content, as rows.npz:0 and rows.npz:9",
        "warning: rows: 1 content has more than one label, as rows.npz:0 and rows.npz:9",
    ]
    assert build(job_of(tmp_path)).repeats == []  # nothing new
    ended = program(
        "cache",
        "query",
        tmp_path / "cache",
        "SELECT payload_digest, count(*) AS rows FROM rows GROUP BY payload_digest "
        "HAVING count(DISTINCT label_digest) > 1",
        "--json",
    )
    assert (ended.code, ended.out.count("payload_digest")) == (0, 1)


def test_a_build_prints_them_at_its_end(tmp_path: Path, program: Program) -> None:
    ended = program("cache", "build", job_of(tmp_path))
    assert "warning: rows: 1 content has more than one label, as rows.npz:0 and rows.npz:9" in ended.out
