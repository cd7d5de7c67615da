"""How many heaps the C library has for a process, which decides what its threads leave behind."""

from __future__ import annotations

import contextlib
import ctypes

HEAPS = 2  # of a process whose threads read while others compute
ONE = 1  # of one whose threads take turns at a network, or each would keep what that took
VARIABLE = "MALLOC_ARENA_MAX"  # by which a process is told before it starts
VARIABLES_BEGIN = "MALLOC_"  # those that glibc reads as a process starts; later ones change nothing
_M_ARENA_MAX = -8  # by which it tells itself


def limit_heaps(count: int) -> None:
    """Let all threads share so many heaps, where the C library is glibc; to be called before any thread is started.

    By default each thread has its own, up to eight a processor, and keeps what it frees: four readers held up to
    400 MB of what they had read, at the same speed (docs/log.md).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, count)
