"""SQL over the per-sample tables of a cache, and over nothing else: no other file, no address."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import polars as pl

from storage.cache.cache import Cache
from storage.cache.catalogue import Catalogue
from storage.cache.samples import TEACHER_COLUMNS, Samples
from storage.errors import BadRequest, IncompleteCache
from storage.tasks.base import LABELLED

# Strings, comments, quoted names, names and numbers, or one character of anything else.
TOKEN = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|\"(?:[^\"]|\"\")*\"|`[^`]*`|[\w.]+|\s+|.", re.DOTALL)
# words that end what is selected
SELECTED_UNTIL = frozenset({"from", "where", "group", "having", "order", "limit", "union", "intersect", "except"})
NAME = re.compile(r'[\w.]+|"(?:[^"]|"")*"')  # plain, or quoted


class _Token(NamedTuple):
    """A piece of SQL, how deep in parentheses it is, and where it begins and ends."""

    text: str
    depth: int
    start: int
    stop: int


def query_samples(cache: Cache, sql: str) -> pl.DataFrame:
    """Return the result of a SELECT over the per-sample tables, headers as they are typed.

    Args:
        cache: an open cache.
        sql: over `samples`, all datasets together with a column `dataset`, or over one dataset by its name. Beside the
            columns of `Samples.of` there are `label_name` and `<teacher>_top_name`, where classes have names.

    Raises:
        BadRequest: the SQL does not parse, names what is not there, or would read a file.
    """
    # first with what it names alone; if that fails, with all there is, which the error is to tell
    for columns in dict.fromkeys((columns_named(sql), None)):
        # a listing of what nobody asks for is half of a count's work
        catalogue = cache.catalogue(teachers=None if columns is None else _teachers_named(columns))
        names = ["samples", *(name for name in catalogue.datasets if catalogue.committed(name))]
        if len(names) == 1:
            raise IncompleteCache(f"{cache.url} holds no samples yet", do="cache build JOB.toml")
        _check(sql, names)
        tables = _tables(catalogue, names[1:], columns)
        try:
            found = pl.SQLContext(tables, eager=True).execute(sql)
            break
        except pl.exceptions.PolarsError as error:
            reason = str(error).split("\n\n", 1)[0]  # below it, the query as Polars has planned it
            reason = re.sub(r"; valid columns: \[.*?\]", "", reason, flags=re.DOTALL)  # which `expected` has
    else:
        there = tables["samples"].columns
        raise BadRequest(
            "cannot answer the query",
            found=reason,
            expected=f"tables {', '.join(names)}; columns {', '.join(there)}",
            do=_remedy(reason, sql, names, there),
        )
    typed = headers(sql)
    # a star in a function stands for several columns: then Polars' own names stay
    if typed is None or len(typed) != len(found.columns):
        return found
    wanted = [header or column for header, column in zip(typed, found.columns, strict=True)]
    if len(set(wanted)) == len(wanted):  # Polars refuses two columns of one name
        found.columns = wanted
    return found


def _tables(catalogue: Catalogue, datasets: Sequence[str], wanted: frozenset[str] | None) -> dict[str, pl.DataFrame]:
    """Return the tables of a query by name, with the columns of those names alone; None for all."""
    tables, samples = {}, Samples(catalogue)
    for name in datasets:
        teachers = [teacher for teacher in catalogue.teacher_names(name) if catalogue.view_names(name, teacher)]
        if wanted is not None and not wanted & _columns_of_rows(catalogue, name, teachers):
            table = samples.counted(name)
        else:
            # beside the names of classes, their numbers
            columns = None if wanted is None else wanted | {column.removesuffix("_name") for column in wanted}
            table = _named(samples.of(name, teachers, columns), catalogue.datasets[name].classes, teachers)
        tables[name] = table.insert_column(0, pl.lit(name).alias("dataset"))
    # datasets have columns of their own: what one lacks is null
    return {**tables, "samples": pl.concat(tables.values(), how="diagonal")}


def _columns_of_rows(catalogue: Catalogue, dataset: str, teachers: Sequence[str]) -> set[str]:
    """Return the columns of a dataset's table for which its commits are read, as far as the first one tells."""
    first = catalogue.first_commit(dataset, None)
    columns = set() if first is None else {*first.table.column_names}
    columns |= {f"{teacher}_{name}" for teacher in teachers for name in (*TEACHER_COLUMNS, LABELLED)}
    return columns | {f"{column}_name" for column in columns}


def _teachers_named(columns: Collection[str]) -> frozenset[str]:
    """Return the names of all teachers that could have a column of these names, whether or not there are such.

    >>> sorted(_teachers_named({"row", "big_top", "small_top_name"}))
    ['big', 'small']
    """
    told = [f"_{name}{of_class}" for name in (*TEACHER_COLUMNS, LABELLED) for of_class in ("", "_name")]
    return frozenset(column.removesuffix(end) for column in columns for end in told if column.endswith(end))


def columns_named(sql: str) -> frozenset[str] | None:
    """Return all names in a query, if no column is meant that is not among them; None where one may be.

    >>> sorted(columns_named('SELECT count(*), d.label FROM d WHERE "a-b_top" = 3'))
    ['3', 'FROM', 'SELECT', 'WHERE', 'a-b_top', 'count', 'd', 'd.label', 'label']
    >>> columns_named("SELECT * FROM d"), columns_named("SELECT count(*) FROM a NATURAL JOIN b")
    (None, None)
    """
    words = [token.text for token in _tokens(sql) if token.text.strip()]
    names: set[str] = set()
    for i, word in enumerate(words):
        if word == "*" and [each.lower() for each in words[max(0, i - 2) : i + 2]] != ["count", "(", "*", ")"]:
            return None
        if word.lower() in {"columns", "natural"} or (word[0] in '"`' and "^" in word):  # patterns, and what is alike
            return None
        if NAME.fullmatch(word) or word.startswith("`"):
            names |= {word.strip('"`'), *word.strip('"`').split(".")}
    return frozenset(names)


def headers(sql: str) -> list[str | None] | None:
    """Return the text of each thing selected that has no name of its own; None if they cannot be told apart.

    >>> headers("SELECT min(e), max(e) AS most, label, corr(e,p) FROM samples")
    ['min(e)', None, None, 'corr(e,p)']
    >>> headers("SELECT * FROM samples") is None
    True
    """
    tokens = [token for token in _tokens(sql) if token.text.strip()]
    # the outermost: those of a WITH are in parentheses
    begin = next((i for i, t in enumerate(tokens) if t.depth == 0 and t.text.lower() == "select"), None)
    if begin is None:
        return None
    items: list[list[_Token]] = [[]]
    for token in tokens[begin + 1 :]:
        if token.depth == 0 and token.text.lower() in SELECTED_UNTIL:
            break
        if token.depth == 0 and token.text == ",":
            items.append([])
        elif not (token.text.lower() == "distinct" and items == [[]]):  # no part of the first thing selected
            items[-1].append(token)
    if any(not item or item[-1].text == "*" for item in items):
        return None
    return [_header(item, sql) for item in items]


def _header(item: list[_Token], sql: str) -> str | None:
    """Return the text of one thing that is selected, or None if it is a column or has been named."""
    if len(item) == 1 and NAME.fullmatch(item[0].text):
        return None
    if any(token.depth == 0 and token.text.lower() == "as" for token in item):
        return None
    before, last = item[-2].text if len(item) > 1 else "", item[-1].text
    # the END of a CASE is no name
    if NAME.fullmatch(last) and last.lower() != "end" and (NAME.fullmatch(before) or before == ")"):
        return None  # a name without AS
    return " ".join(sql[item[0].start : item[-1].stop].split())


def _tokens(sql: str) -> Iterator[_Token]:
    depth = 0
    for match in TOKEN.finditer(sql):
        depth -= match[0] == ")"  # a closing parenthesis is as deep as its opening one
        if not match[0].startswith(("--", "/*")):
            yield _Token(match[0], depth, *match.span())
        depth += match[0] == "("


def _check(sql: str, tables: list[str]) -> None:
    """Raise BadRequest for what is no SELECT, and for the functions by which Polars' SQL would read a file."""
    # without quotes, which must not hide the name of a function
    words = [piece.text.strip('"`').lower() for piece in _tokens(sql) if piece.text.strip()]
    # a whole SELECT may be in parentheses
    if next((word for word in words if word != "("), None) not in ("select", "with"):
        raise BadRequest("cannot answer the query", found=sql[:200], expected=f"a SELECT over {', '.join(tables)}")
    for word, after in pairwise([*words, ""]):
        if after == "(" and word.startswith(("read_", "scan_")):
            raise BadRequest(
                "a query reads the tables of its cache, and no other file",
                found=f"{word}(…)",
                expected=f"one of the tables {', '.join(tables)}",
                do="name a table after FROM",
            )


def _named(samples: pl.DataFrame, classes: list[str], teachers: list[str]) -> pl.DataFrame:
    """Return a table with the names of classes beside their numbers."""
    for column in ("label", *(f"{teacher}_top" for teacher in teachers)):
        if classes and column in samples.columns:
            names = pl.Series(classes, dtype=pl.String)
            # null for a row without a label
            found = samples.select(pl.col(column).replace_strict(range(len(classes)), names, default=None))
            samples.insert_column(samples.columns.index(column) + 1, found.to_series().alias(f"{column}_name"))
    return samples


def _remedy(reason: str, sql: str, tables: list[str], columns: list[str]) -> str | None:
    """Return what helps with an error of a query, if anything is known to."""
    # the two messages in which Polars names what it has not found
    missing = re.search(r"unable to find column \"([^\"]+)\"|relation '([^']+)' was not found", reason)
    known = columns if missing and missing[1] else tables if missing else [*tables, *columns]
    # SQL takes a dash for a minus and a dot for a table's column
    unquoted = [name for name in known if re.search(r"\W", name) and re.search(rf"(?<!\"){re.escape(name)}(?!\")", sql)]
    if unquoted:
        return f'put names that hold dashes or dots in double quotes: "{unquoted[0]}"'
    near = difflib.get_close_matches(missing[1] or missing[2], known, 2, cutoff=0.6) if missing else []
    return f"perhaps {' or '.join(near)}" if near else None
