"""Parquet files that carry a digest of all their own bytes: commits, plan segments and ledger files.

Parquet checks the pages of its columns, but not its footer, where a flipped bit changes a type, a name or our metadata.
So the JSON in the metadata ends with a seal: the digest of the file with 32 zeros in the place of that digest. It is
checked before anything is parsed; pyarrow never meets damaged bytes.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

METADATA_KEY = "stillroom"
SEAL = re.compile(rb"stillroom-xxh3-128:([0-9a-f]{32})")
UNSEALED = b"0" * 32  # in the place of the digest while it is taken


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
    data: bytes = sink.getvalue().to_pybytes()
    position = _seal_position(data)
    return data[:position] + _digest_around(data, position) + data[position + len(UNSEALED) :]


def unseal(data: bytes, *, with_table: bool = True) -> Sealed:
    """Return what `seal` was given.

    Raises:
        ValueError: a bit of it is not as it was written.
    """
    position = _seal_position(data)
    if _digest_around(data, position) != data[position : position + len(UNSEALED)]:
        raise ValueError("its bytes do not match their digest")
    file = pq.ParquetFile(pa.BufferReader(data))
    about = json.loads(file.metadata.metadata[METADATA_KEY.encode()])
    del about["seal"]
    # On this thread: one of Arrow's that lets go of `data` while Python exits would abort the process.
    return Sealed(about, file.read(use_threads=False) if with_table else file.schema_arrow.empty_table())


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
