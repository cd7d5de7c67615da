"""Files that carry a digest of all their own bytes: commits, plan segments, ledger files, and what a run leaves.

Parquet checks the pages of its columns, but not its footer, where a flipped bit changes a type, a name or our metadata.
So the JSON in the metadata ends with a seal: the digest of the file with 32 zeros in the place of that digest. It is
checked before anything is parsed; pyarrow never meets damaged bytes. JSON is sealed alike, by its last key.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from storage.errors import UnsupportedFormat
from storage.format.filesystems import read_file

METADATA_KEY = "stillroom"
SEAL = re.compile(rb"stillroom-xxh3-128:([0-9a-f]{32})")
JSON_VERSION = 2  # of sealed JSON; 1 had no seal
MOST_TABLE_BYTES = 2**30  # in memory; of a shard's commit ours have some hundred bytes a row
MOST_TOLD = 300  # characters of what a library says
UNSEALED = b"0" * 32  # in the place of the digest while it is taken

# Of Thrift's compact protocol, what the footer of a Parquet file is made of, and numbers of fields in it:
# https://github.com/apache/thrift/blob/master/doc/specs/
MAGIC = b"PAR1"
MOST_LEVELS = 16  # Parquet's own has 7
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
WHOLE_NUMBERS = (4, 5, 6)  # of 16, 32 and 64 bits
BYTE_ARRAY = 6  # a physical type of Parquet
ROW_GROUPS, COLUMNS, METADATA, PHYSICAL_TYPE, NUM_VALUES, UNCOMPRESSED_BYTES = 4, 1, 3, 1, 5, 6  # numbers of fields
COMPRESSED_BYTES, DATA_PAGES_BEGIN, DICTIONARY_BEGINS = 7, 9, 11  # of a column
PAGE_UNCOMPRESSED_BYTES, PAGE_COMPRESSED_BYTES = 2, 3  # of a page


class Sealed(NamedTuple):
    """A file whose seal was found whole: its JSON, and its table if that was asked for (else one without rows)."""

    about: dict[str, Any]
    table: pa.Table


def seal(table: pa.Table, about: dict[str, Any]) -> bytes:
    """Return a sealed Parquet file.

    Args:
        table: its rows.
        about: JSON for the file's metadata.
    """
    # The only metadata of our own, and the seal last in it, so that it is the last match whatever the rows hold.
    text = json.dumps(about | {"seal": f"stillroom-xxh3-128:{UNSEALED.decode()}"})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema.remove_metadata(), compression="zstd") as writer:
        writer.write_table(table.replace_schema_metadata(None))
        writer.add_key_value_metadata({METADATA_KEY: text})
    return _sealed(sink.getvalue().to_pybytes())


def unseal(
    data: bytes,
    *,
    with_table: bool = True,
    columns: Sequence[str] | None = None,
    check: Callable[[dict[str, Any], int], None] = lambda about, num_rows: None,
) -> Sealed:
    """Return what `seal` was given.

    Args:
        data: the file.
        with_table: False reads the JSON only.
        columns: those of the table that are read, as far as it has them; None for all.
        check: is told the JSON and the number of rows before any row is read, and may raise.

    Raises:
        ValueError: a bit of it is not as it was written, or its table would be larger than any.
    """
    _check(data)
    with _forgery():
        file = pq.ParquetFile(pa.BufferReader(data))
        about = json.loads(file.metadata.metadata[METADATA_KEY.encode()])
        del about["seal"]
    check(about, file.metadata.num_rows)
    with _forgery():
        table = _read(file, data, columns) if with_table else file.schema_arrow.empty_table()
        table.validate(full=True)  # texts that are no UTF-8 are found by whoever asks for them as Python's, else
        return Sealed(about, table)


@contextlib.contextmanager
def _forgery() -> Iterator[None]:
    """Raise ValueError for whatever bytes lead to that are as they were sealed, and were never written by `seal`."""
    try:
        yield
    except (pa.ArrowMemoryError, ValueError):  # of the former the file may be no cause
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}"[:MOST_TOLD]) from None


def _read(file: pq.ParquetFile, data: bytes, columns: Sequence[str] | None) -> pa.Table:
    """Return a table, after its size is known: a run of equal values is a few bytes, however long it is."""
    texts = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
    plain_bytes, most_bytes = _table_bytes(data)
    if plain_bytes > MOST_TABLE_BYTES:
        raise ValueError(f"a table of {file.metadata.num_rows:,} rows and {plain_bytes:,} bytes")
    # On this thread: one of Arrow's that lets go of `data` while Python exits would abort the process.
    if most_bytes <= MOST_TABLE_BYTES:
        return file.read(columns, use_threads=False)
    # Texts may repeat: each once, and then counted.
    table = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts).read(columns, use_threads=False)
    sizes = (
        pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0
        for name in set(texts) & set(table.column_names)
        for chunk in table[name].chunks
    )
    if (text_bytes := sum(sizes)) > MOST_TABLE_BYTES:
        raise ValueError(f"a table of {len(table):,} rows and {text_bytes:,} bytes of text")
    return table.cast(pa.schema([file.schema_arrow.field(name) for name in table.column_names]))


def _table_bytes(data: bytes) -> tuple[int, int]:
    """Return the bytes of a table in memory: at least, and if every text in it were all that its column holds."""
    at_least = at_most = 0
    for is_text, num_values, uncompressed_bytes in column_sizes(data):
        at_least += max(num_values * (4 if is_text else 8), uncompressed_bytes)  # pages are unpacked whole
        at_most += num_values * (uncompressed_bytes if is_text else 8)
    return at_least, at_most


def seal_json(value: dict[str, Any]) -> bytes:
    """Return a sealed JSON file, readable."""
    text = json.dumps(value | {"seal": f"stillroom-xxh3-128:{UNSEALED.decode()}"}, indent=2)
    return _sealed(f"{text}\n".encode())


def read_json(path: Path) -> dict[str, Any]:
    """Return what `seal_json` was given, or JSON of `format_version` 1, which had no seal.

    Raises:
        OSError: it cannot be read.
        ValueError: a bit of it is not as it was written, or it is no JSON of either kind.
        UnsupportedFormat: it was written by a later format.
    """
    data = read_file(path)
    if is_sealed(data):
        _check(data)
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - a file's fault, not a caller's
    version = value.get("format_version", JSON_VERSION)
    if isinstance(version, int) and version > JSON_VERSION:
        raise UnsupportedFormat(
            f"{path} was written by a later Stillroom",
            found=f"format {version}",
            expected=f"format {JSON_VERSION} or earlier",
        )
    # no flip of one bit makes a 1 of a 2
    if value.pop("seal", None) is None and version == JSON_VERSION:
        raise ValueError("it has no seal, which all of its format have")
    return value


def is_sealed(data: bytes) -> bool:
    """Return whether a file was sealed, though its seal may be damaged: it says so twice."""
    return b'"seal": ' in data or b"stillroom-xxh3-128:" in data


def _sealed(data: bytes) -> bytes:
    """Return bytes that end with an unsealed seal with their digest in it."""
    position = _seal_position(data)
    return data[:position] + _digest_around(data, position) + data[position + len(UNSEALED) :]


def _check(data: bytes) -> None:
    """Raise ValueError unless bytes match their seal."""
    position = _seal_position(data)
    if _digest_around(data, position) != data[position : position + len(UNSEALED)]:
        raise ValueError("its bytes do not match their digest")


def _seal_position(data: bytes) -> int:
    """Return where the digest of a sealed file begins."""
    matches = list(SEAL.finditer(data))
    if not matches:
        raise ValueError(f"no seal in {len(data)} bytes")
    return matches[-1].start(1)


def _digest_around(data: bytes, position: int) -> bytes:
    """Return the digest of a file, 32 hex digits, as if its seal were zeros."""
    view = memoryview(data)
    hasher = xxhash.xxh3_128(view[:position])
    hasher.update(UNSEALED)
    hasher.update(view[position + len(UNSEALED) :])
    return hasher.hexdigest().encode()


class ColumnSize(NamedTuple):
    """A column of one row group: whether its values are texts, how many there are, and the bytes that hold them.

    Those are what its pages say, or the footer, whichever is more.
    """

    is_text: bool
    num_values: int
    uncompressed_bytes: int


def column_sizes(data: bytes) -> Iterator[ColumnSize]:
    """Yield the columns of a Parquet file, of each row group. Raises ValueError: its footer is none.

    Read by ourselves, before pyarrow is asked for any: it ends the whole process where a column's metadata contradict
    themselves, for `RowGroupMetaData.column` lets an exception of C++ through that nothing catches. So a forged file
    would stop `cache verify`, and not be named by it.
    """
    length = int.from_bytes(data[-8:-4], "little")
    if data[-4:] != MAGIC or not 0 < length <= len(data) - 12:
        raise ValueError("it has no footer of Parquet")
    try:
        footer = _Compact(data, len(data) - 8 - length).struct(0)
        for group in footer[ROW_GROUPS]:
            for column in group[COLUMNS]:
                about = column[METADATA]
                values, num_bytes = about[NUM_VALUES], about[UNCOMPRESSED_BYTES]
                if values < 0 or num_bytes < 0:
                    raise ValueError(f"a column of {values} values and {num_bytes} bytes")
                if values:  # of none no page is read, and pyarrow says that its first is at 0
                    num_bytes = max(num_bytes, _pages_bytes(data, about))
                yield ColumnSize(about[PHYSICAL_TYPE] == BYTE_ARRAY, values, num_bytes)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"a column without its size: {type(error).__name__}: {error}") from None


def _pages_bytes(data: bytes, column: dict[int, Any]) -> int:
    """Return the bytes of a column's pages once they are unpacked, as each of them says: the footer may say less.

    Raises:
        ValueError, KeyError, IndexError: they are no pages.
    """
    at = min(column[DATA_PAGES_BEGIN], column.get(DICTIONARY_BEGINS) or column[DATA_PAGES_BEGIN])
    end = at + column[COMPRESSED_BYTES]
    if not 0 <= at <= end <= len(data):
        raise ValueError(f"pages of a column from {at} to {end}, in {len(data)} bytes")
    num_bytes = 0
    while at < end:
        header = _Compact(data, at)
        page = header.struct(0)
        unpacked_bytes, packed_bytes = page[PAGE_UNCOMPRESSED_BYTES], page[PAGE_COMPRESSED_BYTES]
        if unpacked_bytes < 0 or packed_bytes < 0:
            raise ValueError(f"a page of {packed_bytes} bytes that hold {unpacked_bytes}")
        num_bytes += unpacked_bytes
        at = header.at + packed_bytes
    return num_bytes


class _Compact:
    """Bytes of Thrift's compact protocol, read from a place on."""

    def __init__(self, data: bytes, at: int):
        self._data, self.at = data, at

    def struct(self, level: int) -> dict[int, Any]:
        """Return the fields of a struct by number; texts are passed over."""
        if level > MOST_LEVELS:
            raise ValueError("a footer that is nested too deep")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            kind = head & 15
            fields[number] = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, level)
        return fields

    def _value(self, kind: int, level: int) -> Any:
        if kind in WHOLE_NUMBERS:
            return self._number()
        if kind == BINARY:
            length = self._varint()  # which moves the place itself
            self.at += length
            return None
        if kind in (LIST, SET):
            head = self._byte()
            count, of = head >> 4, head & 15
            count = self._varint() if count == 15 else count
            return [self._byte() if of in (TRUE, FALSE) else self._value(of, level + 1) for _ in range(count)]
        if kind == STRUCT:
            return self.struct(level + 1)
        if kind in (BYTE, DOUBLE):
            self.at += 1 if kind == BYTE else 8
            return None
        raise ValueError(f"a footer with a value of type {kind}")

    def _byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            if (shift := shift + 7) > 63:
                raise ValueError("a footer with a number that is too long")

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)  # zigzag: 0, -1, 1, -2, …
