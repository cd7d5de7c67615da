"""SQL over what is known of each sample: of the cache's tables alone, with headers as they are typed."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from storage.cache import Cache
from storage.cache.query import headers, query_samples
from storage.errors import BadRequest


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('{file}')",
        "SELECT * FROM \"read_csv\"('{file}')",
        "SELECT * FROM samples JOIN READ_PARQUET('{file}') AS p ON p.a = samples.row",
        "SELECT row FROM samples WHERE row IN (SELECT a FROM scan_ndjson /* and */ ('{file}'))",
        "WITH t AS (SELECT * FROM read_json('http://localhost:1/x')) SELECT * FROM t",
    ],
)
def test_a_query_reads_no_other_file(cache: Cache, tmp_path: Path, sql: str) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(BadRequest) as caught:
        query_samples(cache, sql.format(file=tmp_path / "secret.csv"))
    assert caught.value.what == "a query reads the tables of its cache, and no other file"


def test_text_that_only_looks_like_it_is_text(cache: Cache) -> None:
    found = query_samples(cache, "SELECT 'read_csv(1)' AS x FROM samples LIMIT 1 -- read_csv(2)")
    assert found.rows() == [("read_csv(1)",)]


def test_headers_are_as_typed(cache: Cache) -> None:
    sql = "SELECT min(cnn_entropy), max(cnn_entropy), corr(cnn_entropy, label), count(*) AS n FROM samples"
    assert query_samples(cache, sql).columns == [
        "min(cnn_entropy)",
        "max(cnn_entropy)",
        "corr(cnn_entropy, label)",
        "n",
    ]


@pytest.mark.parametrize(
    ("selected", "expected"),
    [
        ("a", [None]),
        ("t.a, b AS c, d e", [None, None, None]),
        ("DISTINCT a", [None]),
        (
            "a + 1, (a), CASE WHEN a > 1 THEN 'x, y' ELSE b END",
            ["a + 1", "(a)", "CASE WHEN a > 1 THEN 'x, y' ELSE b END"],
        ),
        ('count(*) n, "odd, name", max("odd, name")', [None, None, 'max("odd, name")']),
        ("min( a ) ,max(a)", ["min( a )", "max(a)"]),
    ],
)
def test_what_has_a_name_of_its_own_keeps_it(selected: str, expected: list[str | None]) -> None:
    assert headers(f"SELECT {selected} FROM t GROUP BY x ORDER BY y, z") == expected
    assert headers(f"WITH u AS (SELECT p, q FROM v) SELECT {selected} FROM u") == expected


def test_stars_keep_the_tables_columns(cache: Cache) -> None:
    assert query_samples(cache, "SELECT * FROM digits").columns[:2] == ["dataset", "row"]


def test_names_of_classes_stand_beside_their_numbers(cache: Cache) -> None:
    classes = cache.dataset("digits").classes
    found = query_samples(cache, "SELECT label, label_name, cnn_top, cnn_top_name FROM samples")
    assert found["label_name"].to_list() == [classes[label] for label in found["label"]]
    assert found["cnn_top_name"].to_list() == [classes[top] for top in found["cnn_top"]]
    assert found.schema["label_name"] == pl.String


@pytest.mark.parametrize(
    ("sql", "do"),
    [
        ("SELECT lable FROM samples", "perhaps label"),
        ("SELECT * FROM sample", "perhaps samples"),
        ("SELECT zzz FROM samples", None),
        ("SELECT row FROM", None),
    ],
)
def test_the_remedy_fits_the_error(cache: Cache, sql: str, do: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        query_samples(cache, sql)
    assert caught.value.do == do
