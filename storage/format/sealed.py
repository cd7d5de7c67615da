"""Files that carry a digest of all their own bytes: commits, plan segments, ledger files, and what a run leaves.

Parquet checks the pages of its columns, but not its footer, where a flipped bit changes a type, a name or our metadata.
So the JSON in the metadata ends with a seal: the digest of the file with 32 zeros in the place of that digest. It is
checked before anything is parsed; pyarrow never meets damaged bytes. JSON is sealed alike, by its last key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from storage.errors import UnsupportedFormat

METADATA_KEY = "stillroom"
SEAL = re.compile(rb"stillroom-xxh3-128:([0-9a-f]{32})")
JSON_VERSION = 2  # of sealed JSON; 1 had no seal
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
    return _sealed(sink.getvalue().to_pybytes())


def unseal(data: bytes, *, with_table: bool = True, columns: Sequence[str] | None = None) -> Sealed:
    """Return what `seal` was given.

    Args:
        data: the file.
        with_table: False reads the JSON only.
        columns: those of the table that are read, as far as it has them; None for all.

    Raises:
        ValueError: a bit of it is not as it was written.
    """
    _check(data)
    file = pq.ParquetFile(pa.BufferReader(data))
    about = json.loads(file.metadata.metadata[METADATA_KEY.encode()])
    del about["seal"]
    # On this thread: one of Arrow's that lets go of `data` while Python exits would abort the process.
    return Sealed(about, file.read(columns, use_threads=False) if with_table else file.schema_arrow.empty_table())


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
    data = path.read_bytes()
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
