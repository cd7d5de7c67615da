"""Rows of text out of tables: Parquet, JSON lines, CSV and TSV, and lines. What cannot be read says where it is.

A row is some texts, and perhaps a class as it is written there.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from storage.datasets.base import Unreadable
from storage.datasets.text.cutting import LONGEST_LINE, READ_BYTES, lines_between, text_between
from storage.datasets.text.opening import end_of, kind_of, open_bytes, size_of
from storage.datasets.text.where import EVERYWHERE, Elsewhere, Where
from storage.errors import MissingSource

Column = str | int  # a name, or of a table without names a number from 0
WHOLE = [0.0, 1.0]  # all of a table, as a part of it
MOST_AT_ONCE = 1024  # rows of a Parquet file
BATCH_BYTES = 2**23  # of them, before they are compressed
TOO_LONG = f"is longer than {LONGEST_LINE >> 20} MiB"
MAX_FIELD = LONGEST_LINE  # characters; the csv module refuses more than 131,072 unless it is told


class Row(NamedTuple):
    """A row of a table of text.

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
        where: which rows.
    """

    texts: tuple[Column, ...]
    label: Column | None = None
    header: bool = True
    quotes: bool | None = None
    where: Where = EVERYWHERE

    @property
    def expected(self) -> str:
        return ", ".join(map(str, self.texts))

    def names(self, path: Path, schema: pa.Schema) -> list[str]:
        _check_parquet(path, schema, self)
        # a column asked for twice is read once
        asked = [*self.texts, *([] if self.label is None else [self.label]), *self.where.check_columns(path, schema)]
        return list(dict.fromkeys(map(str, asked)))

    def row(self, value: dict[str, Any]) -> Row:
        self.where.check(value, written)
        texts = tuple(_text(value.get(str(column)), str(column)) for column in self.texts)
        return Row(texts, None if self.label is None else written(value.get(str(self.label)), str(self.label)))


class HasTexts(Protocol):
    """What a row of any table has."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Return all that it says, of which it has a digest."""


R = TypeVar("R", bound=HasTexts)
R_co = TypeVar("R_co", bound=HasTexts, covariant=True)


class Reading(Protocol[R_co]):
    """What is made of the columns of Parquet, or of the objects of JSON lines."""

    @property
    def expected(self) -> str:
        """Return what an object has, in words."""

    def names(self, path: Path, schema: pa.Schema) -> list[str]:
        """Return the columns to read of a Parquet file. Raises MissingSource: it has not got them."""

    def row(self, value: dict[str, Any]) -> R_co:
        """Return a row; texts may be bytes, of which nobody knows that they are UTF-8.

        Raises:
            Unreadable: why there is none.
            Elsewhere: there is one, of another dataset.
        """


Found = Iterator[tuple[str, Row | Unreadable]]  # where a row is, and the row


def cut(size: int, part: Sequence[float]) -> tuple[int, int]:
    """Return where a part of `size` things begins and ends; parts that meet neither overlap nor leave a gap."""
    return int(size * part[0]), int(size * part[1])


def rows_of(path: Path, columns: Columns, part: Sequence[float]) -> Found:
    """Yield (where, row) of a part of a table.

    Raises:
        MissingSource: it has no such columns, or is no such table at all.
    """
    if (suffix := kind_of(path)) not in READERS:
        raise MissingSource(f"{path} is no table of text", found=path.suffix, expected=" or ".join(READERS))
    return READERS[suffix](path, columns, part)


def json_rows(path: Path, columns: Columns, part: Sequence[float]) -> Found:
    """Yield rows of a file with one JSON object in each line; empty lines are none."""
    check_names(path, columns)
    start, stop = cut(sum(1 for _ in lines_of(path)) if list(part) != WHOLE else 0, part)
    for place, (number, line) in enumerate(lines_of(path)):
        if list(part) == WHOLE or start <= place < stop:
            row = json_row(line, columns) if line is not None else Unreadable(TOO_LONG)
            if not isinstance(row, Elsewhere):
                yield f"{path.name} line {number}", row


def lines_of(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number from 1, line) of a file, blank ones left out; None for one that is too long to be read."""
    number, counted = 1, 0
    with open_bytes(path) as file:
        for position, line in lines_between(path, 0, end_of(path)):
            while counted < position:  # line ends before it, of blank lines and of one that is too long too
                data = file.read(min(READ_BYTES, position - counted))
                number, counted = number + data.count(b"\n"), counted + len(data)
            yield number, line


def json_row(line: bytes, reading: Reading[R]) -> R | Unreadable:
    """Return the row in a line of JSON, or why there is none."""
    try:
        value = json.loads(_decoded(line))
        if not isinstance(value, dict):
            raise Unreadable(f"is {type(value).__name__}, not an object with {reading.expected}")
        return reading.row(value)
    except Unreadable as reason:
        return reason
    except (ValueError, RecursionError) as error:  # RecursionError: brackets within brackets
        return Unreadable(f"is not JSON: {error}")


def parquet_rows(path: Path, columns: Columns, part: Sequence[float]) -> Found:
    """Yield rows of a Parquet file."""
    check_names(path, columns)
    with open_parquet(path, columns) as (file, _):
        start, stop = cut(file.metadata.num_rows, part)
    for number, row in parquet_batches(path, columns, start, stop):
        yield f"{path.name} row {number}", row


@contextlib.contextmanager
def open_parquet(path: Path, reading: Reading[R]) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
    """Yield a file, and its columns to read. Raises MissingSource, also for what Arrow says of it within the block."""
    try:
        # else the column of a whole row group is read at once
        with pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as file:
            yield file, reading.names(path, file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise MissingSource(f"cannot read {path} as Parquet", found=str(error)) from None


def parquet_batches(path: Path, reading: Reading[R], start: int, stop: int) -> Iterator[tuple[int, R | Unreadable]]:
    """Yield (number, row) of the rows [start, stop) of a file, of which a few at a time are held."""
    with open_parquet(path, reading) as (file, names):
        first = 0
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            if first < stop and first + about.num_rows > start:
                # By batches: a row group may be of any size, and 32-bit offsets end at 2 GiB.
                size = max(1, min(MOST_AT_ONCE, BATCH_BYTES * about.num_rows // max(1, about.total_byte_size)))
                number = first
                for batch in file.iter_batches(size, row_groups=[group], columns=names):
                    begin, end = max(0, start - number), min(batch.num_rows, stop - number)
                    if begin < end:
                        yield from _batch_rows(batch.slice(begin, end - begin), number + begin, reading)
                    number += batch.num_rows
                    if number >= stop:
                        break
            first += about.num_rows


def _batch_rows(batch: pa.RecordBatch, first: int, reading: Reading[R]) -> Iterator[tuple[int, R | Unreadable]]:
    # As bytes, decoded below: Arrow does not check that a string is UTF-8.
    stored = {name: _as_bytes(batch.column(name)) for name in batch.schema.names}
    for number in range(batch.num_rows):
        row: R | Unreadable
        try:
            row = reading.row({name: values[number].as_py() for name, values in stored.items()})
        except Elsewhere:
            continue
        except Unreadable as reason:
            row = reason
        except UnicodeDecodeError as error:  # of a string within a list
            row = Unreadable(f"is not UTF-8: {error.reason}")
        yield first + number, row


def delimited_rows(path: Path, columns: Columns, part: Sequence[float], *, delimiter: str, quoted: bool) -> Found:
    """Yield rows of a table of lines, where quotation marks may hold delimiters and line ends; empty lines are none."""
    csv.field_size_limit(MAX_FIELD)
    quoted = quoted if columns.quotes is None else columns.quotes
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    records = partial(_records, path, delimiter=delimiter, quoting=quoting)
    first = next(records(), None)
    if first is None:
        return
    names = first[1]  # even if it names nothing: it tells how many columns there are
    places = [_place(path, column, names, columns) for column in (*columns.texts, columns.label) if column is not None]
    deciding = {column: _place(path, column, names, columns) for column in columns.where.columns}
    skipped = int(columns.header)
    start, stop = cut(sum(1 for _ in records()) - skipped if list(part) != WHOLE else 0, part)
    for place, (number, fields) in enumerate(records(), start=-skipped):
        if place < 0 or (list(part) != WHOLE and not start <= place < stop):
            continue
        row: Row | Unreadable
        if len(fields) != len(names):
            row = Unreadable(f"has {len(fields)} fields, the first line has {len(names)}")
        else:
            try:
                columns.where.check({column: fields[place] for column, place in deciding.items()}, written)
            except Elsewhere:
                continue
            label = fields[places[-1]].strip() or None if columns.label is not None else None
            row = Row(tuple(fields[place] for place in places[: len(columns.texts)]), label)
        yield f"{path.name} line {number}", row


def _records(path: Path, *, delimiter: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, fields) of each record of a table; empty lines are none."""
    # newline: line ends in a field stay as they are; strict: a stray quotation mark is an error, not a guess
    lines = (line for piece in text_between(path, 0, size_of(path)) for line in StringIO(piece, newline=""))
    reader = csv.reader(_joined(lines), delimiter=delimiter, quoting=quoting, strict=True)
    before = 0
    try:
        for fields in reader:
            if fields:
                yield before + 1, fields
            before = reader.line_num  # a field in quotes may span several lines
    except csv.Error as error:
        raise MissingSource(
            f"{path} cannot be read as a table",
            found=f"from line {before + 1} on: {error}",
            expected=f"fields between {delimiter!r}"
            + (', those with quotation marks as "a ""b"" c"' if quoting == csv.QUOTE_MINIMAL else ""),
            do="mend that line; or quotes = false, if a quotation mark is a character as any other",
        ) from None


def _joined(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines that are whole: a text that comes in pieces may be cut within one."""
    begun = ""
    for line in lines:
        begun += line
        if len(begun) > LONGEST_LINE:
            raise csv.Error(f"a line {TOO_LONG}")
        if begun.endswith(("\n", "\r")):
            yield begun
            begun = ""
    if begun:
        yield begun


def plain_rows(path: Path, columns: Columns, part: Sequence[float]) -> Found:
    """Yield rows of a file of lines, each of which is a text, its column 0; blank ones are none."""
    if columns.texts != (0,) or columns.label is not None or columns.where.columns:
        raise MissingSource(
            f"{path} has lines, and no columns",
            found=f"column = {columns.expected}" + (f", label = {columns.label}" if columns.label is not None else ""),
            expected="column = 0, the whole line",
            do="a *.tsv or *.csv has columns",
        )
    start, stop = cut(sum(1 for _ in lines_of(path)) if list(part) != WHOLE else 0, part)
    for place, (number, line) in enumerate(lines_of(path)):
        if list(part) != WHOLE and not start <= place < stop:
            continue
        row: Row | Unreadable
        try:
            row = Row((_decoded(line).rstrip("\r\n"),)) if line is not None else Unreadable(TOO_LONG)
        except Unreadable as reason:
            row = reason
        yield f"{path.name} line {number}", row


READERS: dict[str, Callable[[Path, Columns, Sequence[float]], Found]] = {
    ".parquet": parquet_rows,
    ".jsonl": json_rows,
    ".txt": plain_rows,
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
        do="name the columns in the job: column = …, label = …, where = { … }",
    )


def check_names(path: Path, columns: Columns) -> None:
    """Raise MissingSource if a column is asked for by number, in a table that names its columns."""
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


def _as_bytes(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    as_it_is = pa.types.is_integer(column.type) or pa.types.is_boolean(column.type) or pa.types.is_nested(column.type)
    return column if as_it_is else column.cast(pa.large_binary())  # large: 32-bit offsets end at 2 GiB


def _text(text: Any, column: str) -> str:
    text = _decoded(text) if isinstance(text, bytes) else text
    if not isinstance(text, str):
        raise Unreadable(f"has no text in {column}: {'nothing' if text is None else type(text).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in text):  # half of a pair, which JSON can write
        raise Unreadable(f"has a lone surrogate in {column}, which no UTF-8 can hold")
    return text


def written(label: Any, column: str) -> str | None:
    """Return a class, or a domain, as a text; None for nothing. Raises Unreadable: it is none."""
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
