"""Rows of text out of the columns of Parquet and Arrow, and out of JSON. What cannot be read says where it is.

A row is some texts, and perhaps a class as it is written there. `tables.py` has files of every kind.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from storage.datasets.arrow import NOT_LABELLED, SUFFIX, open_arrow
from storage.datasets.base import Unreadable
from storage.datasets.text.reading.cutting import LONGEST_LINE, READ_BYTES
from storage.datasets.text.reading.opening import kind_of
from storage.datasets.text.reading.where import EVERYWHERE, Elsewhere, Where
from storage.errors import MissingSource

Column = str | int  # a name, or of a table without names a number from 0
MOST_AT_ONCE = 1024  # rows of a Parquet file
BATCH_BYTES = 2**23  # of them, before they are compressed
TOO_LONG = f"is longer than {LONGEST_LINE >> 20} MiB"
IN_COLUMNS = (".parquet", SUFFIX)  # files that have a schema


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
        names_of: what the numbers of a column of classes stand for, as `ClassLabel` has them; -1 is for none.
    """

    texts: tuple[Column, ...]
    label: Column | None = None
    header: bool = True
    quotes: bool | None = None
    where: Where = EVERYWHERE
    names_of: tuple[str, ...] = ()

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
        return Row(texts, None if self.label is None else self._class(value.get(str(self.label)), str(self.label)))

    def _class(self, label: Any, column: str) -> str | None:
        if self.names_of and isinstance(label, int) and not isinstance(label, bool):
            if label == NOT_LABELLED:
                return None
            label = self.names_of[label] if 0 <= label < len(self.names_of) else label  # else told as it is written
        return written(label, column)


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


def cut(size: int, part: Sequence[float]) -> tuple[int, int]:
    """Return where a part of `size` things begins and ends; parts that meet neither overlap nor leave a gap."""
    return int(size * part[0]), int(size * part[1])


def json_row(line: bytes, reading: Reading[R]) -> R | Unreadable:
    """Return the row in a line of JSON, or why there is none."""
    try:
        value = json.loads(decoded_line(line))
        if not isinstance(value, dict):
            raise Unreadable(f"is {type(value).__name__}, not an object with {reading.expected}")
        return reading.row(value)
    except Unreadable as reason:
        return reason
    except (ValueError, RecursionError) as error:  # RecursionError: brackets within brackets
        return Unreadable(f"is not JSON: {error}")


@contextlib.contextmanager
def open_parquet(path: Path, reading: Reading[R]) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
    """Yield a file, and its columns to read. Raises MissingSource, also for what Arrow says of it within the block."""
    try:
        # else the column of a whole row group is read at once
        with pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as file:
            yield file, reading.names(path, file.schema_arrow)
    except (pa.ArrowException, OSError) as error:
        raise MissingSource(f"cannot read {path} as Parquet", found=str(error)) from None


def column_groups(path: Path, reading: Reading[R]) -> list[tuple[int, int]]:
    """Return rows of each group of a file in columns, and bytes of its columns before they are compressed.

    Raises:
        MissingSource: it has no such columns, or cannot be read.
    """
    if kind_of(path) == SUFFIX:
        stream = open_arrow(path)
        return stream.measures(reading.names(path, stream.schema))
    with open_parquet(path, reading) as (file, names):
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        return [(group.num_rows, _measured(group, names)) for group in groups if group.num_rows]


def column_batches(path: Path, reading: Reading[R], start: int, stop: int) -> Iterator[tuple[int, R | Unreadable]]:
    """Yield (number, row) of the rows [start, stop) of a file in columns, of which a few at a time are held."""
    if kind_of(path) == SUFFIX:
        stream = open_arrow(path)
        for batch in stream.batches(start, stop, reading.names(path, stream.schema)):
            yield from _batch_rows(batch, start, reading)
            start += batch.num_rows
    else:
        yield from _parquet_batches(path, reading, start, stop)


def _parquet_batches(path: Path, reading: Reading[R], start: int, stop: int) -> Iterator[tuple[int, R | Unreadable]]:
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


def _measured(group: pq.RowGroupMetaData, names: Sequence[str]) -> int:
    """Return the bytes that some columns have in a row group, one for each row at least; those in a list are of it."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    within = tuple(f"{name}." for name in names)
    found = [chunk for chunk in chunks if chunk.path_in_schema in names or chunk.path_in_schema.startswith(within)]
    return max(sum(int(chunk.total_uncompressed_size) for chunk in found), int(group.num_rows))


def check_names(path: Path, columns: Columns) -> None:
    """Raise MissingSource if a column is asked for by number, in a table that names its columns."""
    numbers = [column for column in (*columns.texts, columns.label) if isinstance(column, int)]
    if numbers:
        raise MissingSource(
            f"{path} has names for its columns", found=f"number {numbers[0]} in the job", expected="a name"
        )


def _check_parquet(path: Path, schema: pa.Schema, columns: Columns) -> None:
    """Raise MissingSource unless a file has the columns that are asked for, of texts and of labels."""
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
    text = decoded_line(text) if isinstance(text, bytes) else text
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


def decoded_line(data: bytes) -> str:
    """Return a text in UTF-8. Raises Unreadable: it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}") from None
