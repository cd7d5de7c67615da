"""Rows out of CSV, TSV and Parquet by the names of columns, a cell as it is written there."""

from __future__ import annotations

import csv
import decimal
import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from storage.datasets.arrow import NOT_LABELLED, SUFFIX, class_label, open_arrow
from storage.datasets.base import Unreadable
from storage.datasets.table.layout import Cell
from storage.datasets.text.reading.opening import kind_of
from storage.datasets.text.reading.rows import BATCH_BYTES, IN_COLUMNS, MOST_AT_ONCE
from storage.datasets.text.reading.tables import records
from storage.errors import MissingSource

SUFFIXES = (".csv", ".tsv", ".parquet")
DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Dialect(NamedTuple):
    """How tables are written.

    Attributes:
        delimiter: of text, what is between fields; None: as the suffix says.
        missing: what a missing cell has.
        named: whether a number of a `ClassLabel` is the class of that name.
    """

    delimiter: str | None
    missing: frozenset[str]
    named: bool = False


def names_of(path: Path, dialect: Dialect) -> list[str]:
    """Return the names of a table's columns. Raises MissingSource: it is none, or two have one name."""
    if kind_of(path) in IN_COLUMNS:
        names = list(schema_of(path).names)
    else:
        first = next(iter(_records(path, dialect)), None)
        if first is None:
            raise MissingSource(f"{path} is empty", expected="a first line with the names of columns")
        names = [name.strip() for name in first[1]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MissingSource(f"{path} has two columns {', '.join(map(repr, twice))}", found=", ".join(names))
    return names


def places_of(path: Path, wanted: Sequence[str], dialect: Dialect) -> list[int]:
    """Return where columns are in a table, whose own order is of no matter. Raises MissingSource: one is not there."""
    names = names_of(path, dialect)
    if absent := [name for name in wanted if name not in names]:
        near = [match for name in absent for match in difflib.get_close_matches(name, names, 1)]
        do = f"is it {', '.join(near)}?" if near else None
        delimiter = dialect.delimiter or DELIMITERS.get(kind_of(path), "")
        other = next((each for each in (";", "\t", "|", ",") if len(names) == 1 and each in names[0]), None)
        if other is not None and other != delimiter:
            do = f"delimiter = {other!r}, if that is what is between its fields"
        raise MissingSource(
            f"{path} has no column {', '.join(absent)}",
            found=", ".join(names),
            expected=f"every column that is wanted: {', '.join(wanted)}",
            do=do,
        )
    return [names.index(name) for name in wanted]


def rows_of(
    path: Path, wanted: Sequence[str], dialect: Dialect, start: int = 0, stop: int | None = None
) -> Iterator[list[Cell] | Unreadable]:
    """Yield the cells of columns, of the rows [start, stop) of a table; or why a row has none.

    Raises:
        MissingSource: a column is not there, or holds what is neither number nor text.
    """
    places = places_of(path, wanted, dialect)
    if kind_of(path) in IN_COLUMNS:
        schema = schema_of(path)
        for name in wanted:
            _check_type(path, name, schema.field(name).type)
        names = [class_label(schema, name) if dialect.named else [] for name in wanted]
        batches = _arrow_batches if kind_of(path) == SUFFIX else _parquet_batches
        for batch in batches(path, wanted, start, stop):
            columns = [_by_name(batch.column(n).to_pylist(), of) for n, of in zip(wanted, names, strict=True)]
            for cells in zip(*columns, strict=True):
                yield [_of_arrow(cell, dialect.missing) for cell in cells]
        return
    width = None
    for number, (line, fields) in enumerate(_records(path, dialect), start=-1):
        width = len(fields) if width is None else width  # of the first line
        if stop is not None and number >= stop:
            return
        if number < start or number < 0:
            continue
        if len(fields) != width:
            yield Unreadable(f"line {line} has {len(fields)} fields, the first line has {width}")
        else:
            yield [_cell(fields[place], dialect.missing) for place in places]


def num_rows(path: Path) -> int | None:
    """Return how many rows a file says it has; None: they must be counted."""
    if kind_of(path) == SUFFIX:
        return open_arrow(path).num_rows
    if kind_of(path) != ".parquet":
        return None
    with _parquet(path) as file:
        return int(file.metadata.num_rows)


def _records(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**24)
    delimiter = dialect.delimiter or DELIMITERS[kind_of(path)]
    return records(path, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL)


def _cell(written: str, missing: frozenset[str]) -> str | None:
    written = written.strip()
    return None if not written or written in missing else written


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=2**16, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise MissingSource(f"cannot read {path} as Parquet", found=str(error)) from None


def schema_of(path: Path) -> pa.Schema:
    """Return the schema of a file in columns. Raises MissingSource: it cannot be read."""
    if kind_of(path) == SUFFIX:
        return open_arrow(path).schema
    with _parquet(path) as file:
        return file.schema_arrow


def _arrow_batches(path: Path, wanted: Sequence[str], start: int, stop: int | None) -> Iterator[pa.RecordBatch]:
    stream = open_arrow(path)
    yield from stream.batches(start, stream.num_rows if stop is None else stop, wanted)


def _parquet_batches(path: Path, wanted: Sequence[str], start: int, stop: int | None) -> Iterator[pa.RecordBatch]:
    """Yield rows of a Parquet file, of which a few at a time are held."""
    with _parquet(path) as file:
        first = 0
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            if first + about.num_rows > start and (stop is None or first < stop):
                size = max(1, min(MOST_AT_ONCE, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
                number = first
                try:
                    for batch in file.iter_batches(size, row_groups=[group], columns=list(wanted)):
                        begin = max(0, start - number)
                        end = batch.num_rows if stop is None else min(batch.num_rows, stop - number)
                        if begin < end:
                            yield batch.slice(begin, end - begin)
                        number += batch.num_rows
                except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                    raise MissingSource(f"cannot read {path} as Parquet", found=str(error)) from None
            first += about.num_rows


def _by_name(cells: list[Any], names: Sequence[str]) -> list[Any]:
    """Return the classes that numbers stand for; a number that is none stays, and is none of the classes."""
    known = {**dict(enumerate(names)), NOT_LABELLED: None}
    return [known.get(cell, cell) for cell in cells] if names else cells


def _of_arrow(cell: object, missing: frozenset[str]) -> Cell:
    if isinstance(cell, str):
        return _cell(cell, missing)
    if isinstance(cell, decimal.Decimal):
        return float(cell)
    nothing = cell is None or (isinstance(cell, float) and math.isnan(cell))  # NaN is what pandas has there
    return None if nothing else cell  # type: ignore[return-value]  # of a checked type


def _check_type(path: Path, name: str, kind: pa.DataType) -> None:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (
        pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_string,
        pa.types.is_large_string, pa.types.is_null,
    )  # fmt: skip
    if not any(is_kind(kind) for is_kind in known):
        when = pa.types.is_temporal(kind)
        raise MissingSource(
            f"column {name} of {path} is neither number nor category",
            found=str(kind),
            expected="numbers, texts or booleans",
            do=("make a number of the date, such as days since another; or " if when else "")
            + "leave it out: name the others in `numeric` and `categorical`",
        )


__all__ = ["SUFFIXES", "Dialect", "names_of", "num_rows", "places_of", "rows_of", "schema_of"]
