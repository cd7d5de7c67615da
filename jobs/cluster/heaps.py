"""How many heaps the C library keeps for this process, which decides what the feed's readers leave behind."""

from __future__ import annotations

import contextlib
import ctypes

HEAPS = 2
VARIABLE = "MALLOC_ARENA_MAX"  # by which a process is told before it starts
_M_ARENA_MAX = -8  # by which it tells itself


def limit_heaps() -> None:
    """Let all threads share two heaps, where the C library is glibc; to be called before any thread is started.

    By default each thread has its own, up to eight a processor, and keeps what it frees: four readers held up to
    400 MB of what they had read, at the same speed (docs/log.md).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, HEAPS)
