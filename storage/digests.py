"""Digests of bytes and fingerprints of meaning, both 128-bit xxh3 as 32 hex digits; and what is random but a function.

Digests are fast enough to check every read (several GB/s), and no defence against who forges a cache on purpose.

The random functions are SplitMix64's: Steele et al. 2014, "Fast splittable pseudorandom number generators", with
Stafford's variant 13. On tensors they are integer arithmetic in int64, the same on every device.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from storage.errors import MissingSource

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio, odd
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # Stafford's variant 13
READ_BYTES = 2**24  # of a file at a time, to digest it
MASK = 2**64 - 1  # Python's integers do not wrap by themselves


def digest(data: bytes | memoryview) -> str:
    """Return the digest of `data`."""
    return xxhash.xxh3_128_hexdigest(data)


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes. Raises MissingSource."""
    hasher = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            while block := file.read(READ_BYTES):  # weights may be larger than memory
                hasher.update(block)
    except OSError as error:
        raise MissingSource(
            f"there is no {path}", found=error.strerror, do="paths in a job file are relative to its own folder"
        ) from None
    return hasher.hexdigest()


def fingerprint(meaning: Any) -> str:
    """Return the fingerprint of a JSON value: equal whenever the values are, whatever the order of their keys."""
    # NaN is no JSON, and not equal to itself
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
    # parted by NUL: ("ab", "c") is not ("a", "bc")
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode()) / 2**64


def sample_keys(sample_ids: Iterable[str]) -> np.ndarray:
    """Return a key of each sample, int64 (N,), for what is random but a function of the sample: draws and views."""
    return np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in sample_ids], np.uint64).view(np.int64)


def signed(value: int) -> int:
    """Return an unsigned 64-bit integer as the int64 of the same bits."""
    return value - 2**64 if value >= 2**63 else value


def mixed(values: Tensor) -> Tensor:
    """Return the finaliser of SplitMix64 of int64s."""
    values = (values ^ shifted(values, 30)) * signed(MULTIPLIERS[0])  # int64 wraps bit for bit as uint64 does
    values = (values ^ shifted(values, 27)) * signed(MULTIPLIERS[1])
    return values ^ shifted(values, 31)


def shifted(values: Tensor, bits: int) -> Tensor:
    """Return int64s shifted right with zeros from the left; torch's own shift copies the sign."""
    return (values >> bits).bitwise_and(2 ** (64 - bits) - 1)


def mixed_after(state: int) -> int:
    """Return the output of SplitMix64 after a state, unsigned: of the state plus GOLDEN, its finaliser.

    >>> f"{mixed_after(0):x}", f"{mixed_after(GOLDEN):x}"  # the first two outputs of a generator with seed 0
    ('e220a8397b1dcdaf', '6e789e6aa1b965f4')
    """
    value = (state + GOLDEN) & MASK
    value = ((value ^ (value >> 30)) * MULTIPLIERS[0]) & MASK
    value = ((value ^ (value >> 27)) * MULTIPLIERS[1]) & MASK
    return value ^ (value >> 31)
