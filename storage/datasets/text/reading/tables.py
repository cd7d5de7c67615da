"""Files of rows of text: Parquet, Arrow streams, JSON lines, CSV and TSV, and lines."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Literal

from storage.datasets.base import Unreadable
from storage.datasets.text.reading.cutting import LONGEST_LINE, READ_BYTES, lines_between, text_between
from storage.datasets.text.reading.opening import end_of, kind_of, open_bytes, size_of
from storage.datasets.text.reading.rows import (
    IN_COLUMNS,
    TOO_LONG,
    Column,
    Columns,
    Row,
    check_names,
    column_batches,
    column_groups,
    cut,
    decoded_line,
    json_row,
    written,
)
from storage.datasets.text.reading.where import Elsewhere
from storage.errors import MissingSource

WHOLE = [0.0, 1.0]  # all of a table, as a part of it
MAX_FIELD = LONGEST_LINE  # characters; the csv module refuses more than 131,072 unless it is told

Found = Iterator[tuple[str, Row | Unreadable]]  # where a row is, and the row


def rows_of(path: Path, columns: Columns, part: Sequence[float]) -> Found:
    """Yield (where, row) of a part of a table.

    Raises:
        MissingSource: it has no such columns, or is no such table at all.
    """
    if (suffix := kind_of(path)) not in READERS:
        raise MissingSource(
            f"{path} is no table of text",
            found=path.suffix,
            expected=" or ".join(READERS),
            do=f"jq -c '.[]' {path.name} > {path.stem}.jsonl    # of a list in JSON" if suffix == ".json" else None,
        )
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


def column_rows(path: Path, columns: Columns, part: Sequence[float]) -> Found:
    """Yield rows of a Parquet file, or of an Arrow stream."""
    check_names(path, columns)
    start, stop = cut(sum(rows for rows, _ in column_groups(path, columns)), part)
    for number, row in column_batches(path, columns, start, stop):
        yield f"{path.name} row {number}", row


def delimited_rows(path: Path, columns: Columns, part: Sequence[float], *, delimiter: str, quoted: bool) -> Found:
    """Yield rows of a table of lines, where quotation marks may hold delimiters and line ends; empty lines are none."""
    csv.field_size_limit(MAX_FIELD)
    quoted = quoted if columns.quotes is None else columns.quotes
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    all_of = partial(records, path, delimiter=delimiter, quoting=quoting)
    first = next(all_of(), None)
    if first is None:
        return
    names = first[1]  # even if it names nothing: it tells how many columns there are
    places = [_place(path, column, names, columns) for column in (*columns.texts, columns.label) if column is not None]
    deciding = {column: _place(path, column, names, columns) for column in columns.where.columns}
    skipped = int(columns.header)
    start, stop = cut(sum(1 for _ in all_of()) - skipped if list(part) != WHOLE else 0, part)
    for place, (number, fields) in enumerate(all_of(), start=-skipped):
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


def records(path: Path, *, delimiter: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, fields) of each record of a table, no empty ones. Raises MissingSource."""
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
    """Yield rows of a file of lines, each of which is a text, its column 0, no blank ones. Raises MissingSource."""
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
            row = Row((decoded_line(line).rstrip("\r\n"),)) if line is not None else Unreadable(TOO_LONG)
        except Unreadable as reason:
            row = reason
        yield f"{path.name} line {number}", row


READERS: dict[str, Callable[[Path, Columns, Sequence[float]], Found]] = {
    **dict.fromkeys(IN_COLUMNS, column_rows),
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
