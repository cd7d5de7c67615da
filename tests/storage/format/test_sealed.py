"""Files whose every byte is vouched for."""

from __future__ import annotations

import json
from io import BytesIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.format.sealed import seal, unseal

TABLE = pa.table({"row": pa.array([1, 2, 3], pa.int64()), "text": pa.array(["a", None, "ü"])})
DATA = seal(TABLE, {"rows_per_shard": 4})


def test_what_was_sealed_comes_back() -> None:
    assert (unseal(DATA).about, unseal(DATA).table.equals(TABLE)) == ({"rows_per_shard": 4}, True)


def test_the_table_can_be_left_out() -> None:
    about, table = unseal(DATA, with_table=False)
    assert (about, len(table), table.schema.equals(TABLE.schema)) == ({"rows_per_shard": 4}, 0, True)


def test_any_parquet_tool_opens_a_sealed_file() -> None:
    assert pl.read_parquet(BytesIO(DATA)).to_dict(as_series=False) == {"row": [1, 2, 3], "text": ["a", None, "ü"]}


def test_sealing_is_a_pure_function() -> None:
    assert seal(TABLE, {"rows_per_shard": 4}) == DATA


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed(mask: int) -> None:
    noticed = 0
    for i in range(len(DATA)):
        damaged = DATA[:i] + bytes([DATA[i] ^ mask]) + DATA[i + 1 :]
        with pytest.raises(ValueError, match=r"digest|seal"):
            unseal(damaged)
        noticed += 1
    assert noticed == len(DATA)


def test_every_cut_is_noticed() -> None:
    for length in range(len(DATA)):
        with pytest.raises(ValueError, match=r"digest|seal"):
            unseal(DATA[:length])


@given(st.binary(max_size=64), st.integers(0, len(DATA)))
def test_every_insertion_is_noticed(extra: bytes, at: int) -> None:
    if extra:
        with pytest.raises(ValueError, match=r"digest|seal"):
            unseal(DATA[:at] + extra + DATA[at:])


@given(st.binary(max_size=200))
def test_bytes_that_are_no_such_file_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="seal"):
        unseal(data)


def test_rows_and_json_that_look_like_a_seal_do_no_harm() -> None:
    fake = f"stillroom-xxh3-128:{'0' * 32}"
    table = pa.table({"text": pa.array([fake])})
    data = seal(table, {"about": fake})
    sealed = json.loads(pq.read_metadata(BytesIO(data)).metadata[b"stillroom"])["seal"] != fake
    assert (unseal(data), sealed) == (({"about": fake}, table), True)


def test_a_table_of_no_rows_comes_back() -> None:
    assert unseal(seal(TABLE.slice(0, 0), {})).table.equals(TABLE.slice(0, 0))
