"""Sizes of columns as a Parquet file says them, and of a forged file no end of the process."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.format.sealed import _sealed, column_sizes, seal, unseal

FORGED = Path(__file__).parents[2] / "data/forged_footer.parquet"


def test_sizes_are_those_that_pyarrow_tells() -> None:
    table = pa.table(
        {"row": range(300), "id": [f"{i}" for i in range(300)], "many": [[1, 2]] * 300, "half": pa.array([0.5] * 300)}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=100)
    for data in (sink.getvalue().to_pybytes(), seal(table, {"a": "é" * 500})):
        metadata = pq.read_metadata(pa.BufferReader(data))
        told = [
            (column.physical_type == "BYTE_ARRAY", column.num_values, column.total_uncompressed_size)
            for group in map(metadata.row_group, range(metadata.num_row_groups))
            for column in map(group.column, range(group.num_columns))
        ]
        assert [tuple(size) for size in column_sizes(data)] == told


def test_a_table_without_rows_is_a_whole_file() -> None:
    table = pa.table({"row": pa.array([], pa.int64()), "text": pa.array([], pa.string())})
    assert unseal(seal(table, {"a": 1})).table == table


def test_a_footer_that_ends_the_process_of_pyarrow_is_named() -> None:
    """In a process of its own, for what is read so would end this one."""
    child = os.fork()
    if child == 0:
        try:
            unseal(FORGED.read_bytes())
        except ValueError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize(
    "footer",
    [b"", b"\x00", b"\x49\x1c", b"\x49\x1c\x19\x1c\x00\x00", b"\x1c" * 400, b"\x15" + b"\xff" * 30, b"\x1e\x00"],
)
def test_what_is_no_footer_is_refused(footer: bytes) -> None:
    with pytest.raises(ValueError, match=r"footer|column"):
        list(column_sizes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"))


def test_a_footer_that_says_less_than_its_pages_do_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is 20 MB, zstd makes 2 kB of them, and the footer says a thousand bytes."""
    data = seal(pa.table({"row": [0], "text": ["a" * 20_000_000]}), {})
    (honest,) = (size.uncompressed_bytes for size in column_sizes(data) if size.is_text)
    forged = _sealed(data.replace(_varint(honest), _varint(1000, len(_varint(honest)))))
    assert pq.read_metadata(pa.BufferReader(forged)).row_group(0).column(1).total_uncompressed_size == 1000
    monkeypatch.setattr("storage.format.sealed.MOST_TABLE_BYTES", 2**20)
    for file in (data, forged):
        with pytest.raises(ValueError, match=r"a table of 1 rows and 20,000,\d+ bytes"):
            unseal(file)


def _varint(value: int, length: int = 1) -> bytes:
    """Return a number as Thrift has it, in at least so many bytes."""
    value, found = 2 * value, bytearray()
    while value > 127 or len(found) + 1 < length:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
