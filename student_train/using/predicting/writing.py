"""Where predictions are written: CSV or Parquet, beside their place until they are whole."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from storage.errors import BadRequest
from storage.format.filesystems import check_place, storage_failure

Write = Callable[[pl.DataFrame], None]
ROWS_A_GROUP = 2**16  # of Parquet


def check_out(path: Path) -> None:
    """Raise BadRequest if predictions cannot be written there: it is there already, nobody may, or of no such kind."""
    if re.match(r"[a-z0-9]+:/", str(path)):  # a path has one of the two strokes that it was given
        raise BadRequest(f"predictions are written to a disk of this machine, not to {path}", do="copy the file there")
    if path.suffix not in (".csv", ".parquet"):
        raise BadRequest(f"predictions are written as .csv or .parquet, not as {path.name}")
    if path.exists() or path.is_symlink():
        raise BadRequest(f"{path} is there already", do="name another file; or delete it")
    if not path.parent.is_dir():
        raise BadRequest(f"there is no folder {path.parent}", found=str(path), do=f"mkdir -p {path.parent}")
    check_place(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Write]:
    """Yield a function that writes the next rows; the file has its name once all went well.

    Raises:
        StorageFailure: the disk refuses.
        BadRequest: meanwhile somebody else has written it.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # nobody else writes into it, before or behind the link
    try:
        try:
            with _csv(part) if path.suffix == ".csv" else _parquet(part) as write:
                yield write
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            os.link(part, path)  # unlike a rename, it takes nobody's place
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError:
        raise BadRequest(f"{path} is there by now, of somebody else", do="name another file") from None
    except OSError as error:
        raise storage_failure("write", str(path), error) from None


@contextlib.contextmanager
def _csv(part: Path) -> Iterator[Write]:
    with open(part, "wb") as file:
        begun = False

        def write(frame: pl.DataFrame) -> None:
            nonlocal begun
            frame.write_csv(file, include_header=not begun)
            begun = True

        yield write


@contextlib.contextmanager
def _parquet(part: Path) -> Iterator[Write]:
    """Yield what writes frames, as row groups of ROWS_A_GROUP or more."""
    writer: pq.ParquetWriter | None = None
    kept: list[pl.DataFrame] = []
    kept_rows = 0

    def flush() -> None:
        nonlocal writer, kept_rows
        table = pl.concat(kept).to_arrow(compat_level=pl.CompatLevel.oldest())
        if writer is None:
            writer = pq.ParquetWriter(part, table.schema, compression="zstd")
        writer.write_table(table)
        kept.clear()
        kept_rows = 0

    def write(frame: pl.DataFrame) -> None:
        nonlocal kept_rows
        kept.append(frame)
        kept_rows += len(frame)
        if kept_rows >= ROWS_A_GROUP:
            flush()

    try:
        yield write
        if kept:
            flush()
    except pa.ArrowException as error:
        raise OSError(str(error)) from None
    finally:
        if writer is not None:
            writer.close()
