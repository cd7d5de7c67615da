"""How long work may take on a worker, which makes way for another one where it takes longer."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from storage.errors import Overdue

GRACE_S = 1.0  # until what is told has left the worker

W = TypeVar("W")
R = TypeVar("R")


def within(limit_s: float, perform: Callable[[W], R], name: str, work: W) -> R:
    """Return what `perform` makes of some work, on a worker; end this whole process if that takes too long.

    A thread that sleeps for ever cannot be ended in any other way, and it may hold what others wait for.

    Args:
        limit_s: how long it may take.
        perform: does it.
        name: of the option that says so.
        work: has a `key`.

    Raises:
        Overdue: it took too long. The process ends a moment later.
    """
    ended = queue.SimpleQueue[tuple[R, None] | tuple[None, BaseException]]()

    def run() -> None:
        try:
            ended.put((perform(work), None))
        except BaseException as error:  # whatever it is, it is the other thread's
            ended.put((None, error))

    threading.Thread(target=run, name="within a limit", daemon=True).start()
    try:
        result, error = ended.get(timeout=limit_s)
    except queue.Empty:
        threading.Timer(GRACE_S, os._exit, [1]).start()
        raise Overdue(
            f"{work.key} took longer than {name} = {limit_s:g}, each time that it was tried",  # type: ignore[attr-defined]
            found=f"not done after {limit_s:g} s; its worker was replaced",
            do=f"look for what waits there, in the teacher's own code or the files that it reads; or raise {name}",
        ) from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
