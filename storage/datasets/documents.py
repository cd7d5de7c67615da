"""Documents out of files: whole texts, rows of Parquet, lines of JSON. What cannot be read says where it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.datasets.base import Unreadable
from storage.errors import MissingSource

Row = dict[str, str]


def cut(size: int, part: Sequence[float]) -> tuple[int, int]:
    """Return where a part of `size` things begins and ends; parts that meet neither overlap nor leave a gap."""
    return int(size * part[0]), int(size * part[1])


def utf8(path: Path) -> str:
    """Return the text of a file, every character as it is. Raises MissingSource: it is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MissingSource(
            f"{path} is not UTF-8",
            found=f"byte 0x{data[error.start]:02x} at position {error.start}",
            expected="text in UTF-8",
            do=f"convert it, if it is Latin-1 by: iconv -f latin1 -t utf-8 {path.name}",
        ) from None


def json_rows(path: Path, columns: Sequence[str], part: Sequence[float]) -> Iterator[tuple[str, Row | Unreadable]]:
    """Yield (where, row) of a part of a file with one JSON object in each line; empty lines are none."""
    lines = [(number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), start=1) if line.strip()]
    start, stop = cut(len(lines), part)
    for number, line in lines[start:stop]:
        row: Row | Unreadable
        try:
            row = _texts(json.loads(_decoded(line)), columns)
        except Unreadable as reason:
            row = reason
        except (ValueError, RecursionError) as error:
            row = Unreadable(f"is not JSON: {error}")
        yield f"{path.name} line {number}", row


def parquet_rows(path: Path, columns: Sequence[str], part: Sequence[float]) -> Iterator[tuple[str, Row | Unreadable]]:
    """Yield (where, row) of a part of a Parquet file. Raises MissingSource: no such columns of text."""
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow, columns)
            start, stop = cut(file.metadata.num_rows, part)
            table = file.read(list(columns)).slice(start, stop - start)
        # As bytes, decoded below: Arrow does not check that a string is UTF-8.
        stored = [table[column].cast(pa.large_binary()) for column in columns]
    except (pa.ArrowException, OSError) as error:
        raise MissingSource(f"cannot read {path} as Parquet", found=str(error)) from None
    for number in range(stop - start):
        row: Row | Unreadable
        try:
            row = _texts({c: values[number].as_py() for c, values in zip(columns, stored, strict=True)}, columns)
        except Unreadable as reason:
            row = reason
        yield f"{path.name} row {start + number}", row


def _check_columns(path: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    for column in columns:
        if column not in schema.names:
            raise MissingSource(
                f"{path} has no column {column}",
                found=", ".join(schema.names),
                do="name the columns in the job: column = …, prompt = …",
            )
        if not any(is_kind(schema.field(column).type) for is_kind in kinds):
            found = str(schema.field(column).type)
            raise MissingSource(f"column {column} of {path} holds no text", found=found, expected="string or binary")


def _texts(value: Any, columns: Sequence[str]) -> Row:
    if not isinstance(value, dict):
        raise Unreadable(f"is {type(value).__name__}, not an object with {', '.join(columns)}")
    row = {}
    for column in columns:
        text = value.get(column)
        text = _decoded(text) if isinstance(text, bytes) else text
        if not isinstance(text, str):
            raise Unreadable(f"has no text in {column}: {'nothing' if text is None else type(text).__name__}")
        if any("\ud800" <= character <= "\udfff" for character in text):  # half of a pair, which JSON can write
            raise Unreadable(f"has a lone surrogate in {column}, which no UTF-8 can hold")
        row[column] = text
    return row


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(f"is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}") from None
