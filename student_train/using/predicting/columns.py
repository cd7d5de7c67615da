"""Numbers out of the columns of a table, a row at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from storage.datasets.base import Unreadable
from storage.errors import BadRequest, MissingSource

AT_ONCE = 4096


def number_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, np.ndarray | Unreadable]]:
    """Yield (where, float32 (D,)) of each row of a .csv, .tsv or .parquet, or why it has no numbers.

    Raises:
        MissingSource: it has no such columns, or is no table.
        BadRequest: it is of another kind.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise BadRequest(f"column {', '.join(twice)} is named twice", do="name each column of the inputs once")
    if path.suffix not in (".csv", ".tsv", ".parquet"):
        raise BadRequest(f"numbers are read of .csv, .tsv and .parquet, and {path} is none", found=path.suffix)
    try:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            names, batches = file.schema_arrow.names, None
            _check(path, columns, names)
            batches = file.iter_batches(AT_ONCE, columns=list(columns))
        else:
            delimiter = "," if path.suffix == ".csv" else "\t"
            with open(path, encoding="utf-8-sig", newline="") as lines:  # spreadsheets put a mark before the first name
                _check(path, columns, next(csv.reader(lines, delimiter=delimiter), []))
            options = pyarrow.csv.ConvertOptions(
                include_columns=list(columns),
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=True,
            )
            batches = pyarrow.csv.open_csv(
                path,
                parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=options,
            )
        number = 0
        for batch in batches:
            values = [batch.column(name).to_pylist() for name in columns]
            for row in zip(*values, strict=True):
                yield f"{path.name} row {number}", _numbers(row, columns)
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise MissingSource(f"cannot read {path} as a table", found=str(error).splitlines()[0]) from None


def _check(path: Path, columns: Sequence[str], names: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in names]:
        raise MissingSource(
            f"{path} has no column {', '.join(missing)}", found=", ".join(names) or "an empty first line"
        )
    if twice := [column for column in columns if names.count(column) > 1]:  # of which Arrow takes the last
        raise MissingSource(f"{path} has two columns {', '.join(twice)}", found=", ".join(names))


def _numbers(row: Sequence[object], columns: Sequence[str]) -> np.ndarray | Unreadable:
    values = np.empty(len(row), np.float32)
    for place, value in enumerate(row):
        try:
            values[place] = float(value)  # type: ignore[arg-type]  # whatever is no number raises
        except (TypeError, ValueError):
            return Unreadable(f"column {columns[place]} has no number: {value!r}")
    return values
