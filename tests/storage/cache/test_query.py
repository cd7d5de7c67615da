"""SQL over what is known of each sample: of the cache's tables alone, with headers as they are typed."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from storage.cache import Cache, Samples, query
from storage.cache.query import headers, query_samples
from storage.errors import BadRequest, TryAgain
from tests.counting import Counting


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


# --- what is read for it

LEDGER = "ledger/00000000.parquet"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM samples",
        "SELECT count( * ) AS n, dataset FROM samples GROUP BY dataset",
        "SELECT shard, COUNT(*) FROM digits GROUP BY shard ORDER BY shard",
        "SELECT count(label) FROM samples",
        "SELECT label_name FROM digits WHERE cnn_top IS NOT NULL ORDER BY row",
        "SELECT d.sample_id FROM digits AS d ORDER BY d.label, d.row",
        'SELECT "label", "cnn_entropy" FROM samples ORDER BY "row"',
        "SELECT sum(label * 2) FROM samples",
        "SELECT count(*) FROM samples AS a NATURAL JOIN digits",
        "SELECT count(*) FROM samples AS a JOIN digits AS b USING (row)",
        "SELECT COLUMNS('^cnn_.*$') FROM samples ORDER BY row",
        "SELECT 'label', 1 FROM samples",
        "SELECT * FROM samples ORDER BY row",
        "WITH a AS (SELECT label FROM samples) SELECT count(*) FROM a",
    ],
)
def test_whatever_of_the_commits_is_read_the_answer_is_that_of_all(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    answers = []
    for read in (query.columns_named, lambda sql: None):
        monkeypatch.setattr(query, "columns_named", read)
        try:
            answers.append(query_samples(cache, sql).to_dict(as_series=False))
        except BadRequest as error:
            answers.append({"error": [error.found, error.expected]})
    assert answers[0] == answers[1]


def test_a_count_reads_no_rows(cache: Cache) -> None:
    cache.catalogue().ledger().compact()
    objects = Counting(cache.objects)
    found = query_samples(Cache(objects, cache.spec), "SELECT count(*) FROM samples")
    read = [path for verb, path in objects.requests if verb == "get" and path[-13:-8].isdigit()]
    # of commits the first one, for its columns
    assert (found.item(), read) == (9, ["digits/plan/00000.parquet", "digits/ingest/00000.parquet", LEDGER])


@pytest.mark.parametrize(("selected", "listed"), [("count(*)", False), ("max(row)", False), ("max(cnn_top)", True)])
def test_shards_of_teachers_that_no_column_names_are_not_listed(cache: Cache, selected: str, listed: bool) -> None:
    objects = Counting(cache.objects)
    query_samples(Cache(objects, cache.spec), f"SELECT {selected} FROM samples")
    folders = [path for verb, path in objects.requests if verb == "list"]
    assert ("digits/ingest" in folders, "digits/cnn/plain" in folders) == (True, listed)


def test_a_count_of_shards_that_are_dropped_meanwhile_is_refused(cache: Cache) -> None:
    samples = Samples(cache.catalogue())
    cache.objects.delete("digits/ingest/00001.parquet")
    with pytest.raises(TryAgain, match="gone"):
        samples.counted("digits")


def test_an_error_of_a_query_that_names_little_tells_all_columns(cache: Cache) -> None:
    with pytest.raises(BadRequest) as caught:
        query_samples(cache, "SELECT count(lable) FROM samples")
    assert "sample_id" in str(caught.value.expected)
    assert caught.value.do == "perhaps label"
