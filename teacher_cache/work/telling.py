"""How far a piece of work is, told from within it to whoever watches; to nobody where nobody does.

Who listens, is a matter of where it runs: of this process's own thread, or of a Dask worker. Whoever listens may say
that it is no longer wanted, and then it ends where it would have told.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

SELDOM_S = 1.0  # between two words of one piece of work


class Underway(NamedTuple):
    """What becomes of a piece of work before its end: so many of its rows are done."""

    rows: int


class NoLongerWanted(Exception):
    """A piece of work ends before its end, without a commit: the command that wants it has been stopped."""


_tell: ContextVar[Callable[[int], None] | None] = ContextVar("tell", default=None)


@contextlib.contextmanager
def telling(tell: Callable[[Underway], None], wanted: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Within the block, let work tell of its rows, about once a second, and end it with NoLongerWanted if it is not."""
    told_s = time.monotonic()

    def seldom(rows: int) -> None:
        nonlocal told_s
        if not wanted():
            raise NoLongerWanted
        if time.monotonic() - told_s >= SELDOM_S:
            tell(Underway(rows))
            told_s = time.monotonic()

    token = _tell.set(seldom)
    try:
        yield
    finally:
        _tell.reset(token)


def rows_done(count: int) -> None:
    """Tell how many rows of the work of this thread are done so far. Raises NoLongerWanted: it is to end here."""
    if (tell := _tell.get()) is not None:
        tell(count)
