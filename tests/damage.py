"""Damage to what is stored: as a disk may do it, bits; and as somebody may who writes a whole file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.cache import Cache
from storage.format.sealed import read_json, seal_json
from storage.format.shards import ShardKey


def flip(cache: Cache, key: ShardKey, member: str = "", at: int = 0) -> Path:
    """Flip a bit of byte `at` of a member, by default of the largest Zarr chunk; return the file that holds it."""
    commit = cache.unchecked_commit(key)
    largest = max(commit.members, key=lambda stored: ("/c/" in stored.path, stored.size_bytes))
    (chosen,) = (stored for stored in commit.members if stored.path == (member or largest.path))
    path = Path(cache.url) / commit.group / ("" if commit.whole else chosen.path)
    assert 0 <= at < chosen.size_bytes
    data = bytearray(path.read_bytes())
    data[chosen.begin + at] ^= 4
    path.write_bytes(data)
    return path


def edit_json(path: Path, **changes: Any) -> None:
    """Write a sealed JSON file anew with some values changed, as whole as before."""
    path.write_bytes(seal_json(read_json(path) | changes))


def flipped(data: bytes, bit: int) -> bytes:
    """Return bytes with one bit flipped."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
