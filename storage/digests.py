"""Digests of bytes and fingerprints of meaning, both 128-bit xxh3 as 32 hex digits.

Fast enough to check every read (several GB/s), and not a defence against someone who forges a cache on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash


def digest(data: bytes | memoryview) -> str:
    """Return the digest of `data`."""
    return xxhash.xxh3_128_hexdigest(data)


def fingerprint(meaning: Any) -> str:
    """Return the fingerprint of a JSON value: equal whenever the values are, whatever the order of their keys."""
    return digest(json.dumps(meaning, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def differences(found: Any, expected: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return (field, found, expected) for every leaf in which two JSON values differ, depth first.

    A field that only one side has is given as None on the other.
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            leaf
            for key in sorted(found.keys() | expected.keys())
            for leaf in differences(found.get(key), expected.get(key), f"{prefix}{key}.")
        ]
    return [] if found == expected else [(prefix.rstrip("."), found, expected)]


def unit_interval(*parts: object) -> float:
    """Return a number in [0, 1) that is a pure function of `parts`, the same on every machine and in every run."""
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode()) / 2**64


def sample_keys(sample_ids: Iterable[str]) -> np.ndarray:
    """Return a key of each sample, int64 (N,), for what is random but a function of the sample: draws and views."""
    return np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in sample_ids], np.uint64).view(np.int64)
