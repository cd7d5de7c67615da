"""Rows of text out of tables: Parquet, JSON lines, CSV and TSV. What cannot be read says where it is.

A row is some texts, and perhaps a class as it is written there.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from storage.datasets.base import Unreadable
from storage.errors import MissingSource

Column = str | int  # a name, or of a table without names a number from 0
BOM = "\ufeff"  # which spreadsheets put before a CSV, and which would be a part of the first name
MAX_FIELD = 2**31 - 1  # characters; the csv module refuses more than 131,072 unless it is told


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        texts: one for each of `Columns.texts`.
        label: as it is written; None if there is none.
    """

    texts: tuple[str, ...]
    label: str | None = None


class Columns(NamedTuple):
    """Which columns of a table are read.

    Attributes:
        texts: of text.
        label: of the class.
        header: of CSV and TSV, whether the first line names the columns.
        quotes: of CSV and TSV, whether a field may be between quotation marks; None: in CSV.
    """

    texts: tuple[Column, ...]
    label: Column | None = None
    header: bool = True
    quotes: bool | None = None


Found = Iterator[tuple[str, Row | Unreadable]]  # where a row is, and the row


def cut(size: int, part: Sequence[float]) -> tuple[int, int]:
    """Return where a part of `size` things begins and ends; parts that meet neither overlap nor leave a gap."""
    return int(size * part[0]), int(size * part[1])


def utf8(path: Path) -> str:
    """Return the text of a file as it is, less a byte-order mark. Raises MissingSource: it is not UTF-8."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        found, do = "the byte-order mark of UTF-16", f"convert it: iconv -f utf-16 -t utf-8 {path.name}"
    else:
        try:
            return data.decode().removeprefix(BOM)
        except UnicodeDecodeError as error:
            found = f"byte 0x{data[error.start]:02x} at position {error.start}"
            do = f"convert it, if it is Latin-1 by: iconv -f latin1 -t utf-8 {path.name}"
    raise MissingSource(f"{path} is not UTF-8", found=found, expected="text in UTF-8", do=do)


def rows_of(path: Path, columns: Columns, part: Sequence[float]) -> Found:
    """Yield (where, row) of a part of a table.

    Raises:
        MissingSource: it has no such columns, or is no such table at all.
    """
    if (suffix := path.suffix.lower()) not in READERS:
        raise MissingSource(f"{path} is no table of text", found=path.suffix, expected=" or ".join(READERS))
    return READERS[suffix](path, columns, part)


def json_rows(path: Path, columns: Columns, part: Sequence[float]) -> Found:
    """Yield rows of a file with one JSON object in each line; empty lines are none."""
    _check_names(path, columns)
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        utf8(path)  # which says so
    data = data.removeprefix(codecs.BOM_UTF8)
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()]
    start, stop = cut(len(lines), part)
    for number, line in lines[start:stop]:
        row: Row | Unreadable
        try:
            value = json.loads(_decoded(line))
            if not isinstance(value, dict):
                raise Unreadable(f"is {type(value).__name__}, not an object with {', '.join(map(str, columns.texts))}")
            row = _row(value, columns)
        except Unreadable as reason:
            row = reason
        except (ValueError, RecursionError) as error:  # RecursionError: brackets within brackets
            row = Unreadable(f"is not JSON: {error}")
        yield f"{path.name} line {number}", row


def parquet_rows(path: Path, columns: Columns, part: Sequence[float]) -> Found:
    """Yield rows of a Parquet file."""
    _check_names(path, columns)
    names = [*map(str, columns.texts), *([] if columns.label is None else [str(columns.label)])]
    try:
        with pq.ParquetFile(path) as file:
            _check_parquet(path, file.schema_arrow, columns)
            start, stop = cut(file.metadata.num_rows, part)
            # a column asked for twice is read once
            table = file.read(list(dict.fromkeys(names))).slice(start, stop - start)
        # As bytes, decoded below: Arrow does not check that a string is UTF-8.
        stored = {name: _as_bytes(table[name]) for name in table.column_names}
    except (pa.ArrowException, OSError) as error:
        raise MissingSource(f"cannot read {path} as Parquet", found=str(error)) from None
    for number in range(stop - start):
        row: Row | Unreadable
        try:
            row = _row({name: values[number].as_py() for name, values in stored.items()}, columns)
        except Unreadable as reason:
            row = reason
        yield f"{path.name} row {start + number}", row


def delimited_rows(path: Path, columns: Columns, part: Sequence[float], *, delimiter: str, quoted: bool) -> Found:
    """Yield rows of a table of lines, where quotation marks may hold delimiters and line ends; empty lines are none."""
    csv.field_size_limit(MAX_FIELD)
    quoted = quoted if columns.quotes is None else columns.quotes
    text = utf8(path)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    # newline: line ends in a field stay as they are; strict: a stray quotation mark is an error, not a guess
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    lines: list[tuple[int, list[str]]] = []
    before = 0
    try:
        for fields in reader:
            if fields:
                lines.append((before + 1, fields))
            before = reader.line_num  # a field in quotes may span several lines
    except csv.Error as error:
        raise MissingSource(
            f"{path} cannot be read as a table",
            found=f"from line {before + 1} on: {error}",
            expected=f"fields between {delimiter!r}"
            + (', those with quotation marks as "a ""b"" c"' if quoted else ""),
            do="mend that line; or quotes = false, if a quotation mark is a character as any other",
        ) from None
    if not lines:
        return
    names = lines[0][1]  # even if it names nothing: it tells how many columns there are
    places = [_place(path, column, names, columns) for column in (*columns.texts, columns.label) if column is not None]
    lines = lines[1:] if columns.header else lines
    start, stop = cut(len(lines), part)
    for number, fields in lines[start:stop]:
        row: Row | Unreadable
        if len(fields) != len(names):
            row = Unreadable(f"has {len(fields)} fields, the first line has {len(names)}")
        else:
            label = fields[places[-1]].strip() or None if columns.label is not None else None
            row = Row(tuple(fields[place] for place in places[: len(columns.texts)]), label)
        yield f"{path.name} line {number}", row


READERS: dict[str, Callable[[Path, Columns, Sequence[float]], Found]] = {
    ".parquet": parquet_rows,
    ".jsonl": json_rows,
    ".csv": partial(delimited_rows, delimiter=",", quoted=True),
    ".tsv": partial(delimited_rows, delimiter="\t", quoted=False),  # text/tab-separated-values knows no quotes
}


def _place(path: Path, column: Column, first: list[str], columns: Columns) -> int:
    if isinstance(column, int) and 0 <= column < len(first):
        return column
    if isinstance(column, str) and first.count(column) == 1:
        return first.index(column)
    twice = isinstance(column, str) and column in first
    raise MissingSource(
        f"{path} has {'two columns' if twice else 'no column'} {column}",
        found=", ".join(first) if columns.header else f"{len(first)} columns in the first line",
        expected="one of its columns by name, or by its number from 0",
        do="name the columns in the job: column = …, label = …",
    )


def _check_names(path: Path, columns: Columns) -> None:
    numbers = [column for column in (*columns.texts, columns.label) if isinstance(column, int)]
    if numbers:
        raise MissingSource(
            f"{path} has names for its columns", found=f"number {numbers[0]} in the job", expected="a name"
        )


def _check_parquet(path: Path, schema: pa.Schema, columns: Columns) -> None:
    texts: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
    )
    labels = (*texts, pa.types.is_integer, pa.types.is_boolean, pa.types.is_dictionary)  # dictionary: categories
    asked: list[tuple[Column, tuple[Callable[[pa.DataType], bool], ...], str, str]] = [
        (column, texts, "text", "string or binary") for column in columns.texts
    ]
    if columns.label is not None:
        asked.append((columns.label, labels, "labels", "string, integer or boolean"))
    for column, kinds, what, expected in asked:
        if column not in schema.names:
            raise MissingSource(
                f"{path} has no column {column}",
                found=", ".join(schema.names),
                do="name the columns in the job: column = …"
                + (", prompt = …" if columns.label is None else ", label = …"),
            )
        found = schema.field(column).type
        if not any(is_kind(found) for is_kind in kinds):
            raise MissingSource(f"column {column} of {path} holds no {what}", found=str(found), expected=expected)


def _as_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    numbers = pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)
    return column if numbers else column.cast(pa.large_binary())  # large: 32-bit offsets end at 2 GiB


def _row(value: dict[str, Any], columns: Columns) -> Row:
    """Return a row of a table with names. Raises Unreadable."""
    texts = tuple(_text(value.get(str(column)), str(column)) for column in columns.texts)
    return Row(texts, None if columns.label is None else _label(value.get(str(columns.label)), str(columns.label)))


def _text(text: Any, column: str) -> str:
    text = _decoded(text) if isinstance(text, bytes) else text
    if not isinstance(text, str):
        raise Unreadable(f"has no text in {column}: {'nothing' if text is None else type(text).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in text):  # half of a pair, which JSON can write
        raise Unreadable(f"has a lone surrogate in {column}, which no UTF-8 can hold")
    return text


def _label(label: Any, column: str) -> str | None:
    if label is None:
        return None
    if isinstance(label, bool):  # first: a bool is an int
        return str(label).lower()  # as JSON writes it
    return str(label) if isinstance(label, int) else _text(label, column).strip() or None


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}") from None
