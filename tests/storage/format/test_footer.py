"""Sizes of columns as a Parquet file says them, and of a forged file no end of the process."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.format.sealed import column_sizes, seal, unseal

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
