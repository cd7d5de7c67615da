"""How long work may take on a worker, which makes way for another one where it takes longer."""

from __future__ import annotations

import contextlib
import contextvars
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from storage.errors import Overdue

GRACE_S = 1.0  # until what is told has left the worker
TICK_S = 0.1

W = TypeVar("W")
R = TypeVar("R")


class Late(Exception):
    """Work was not done in time; its thread goes on until the process ends."""


def within(
    limit_s: float, perform: Callable[[W], R], name: str, waited_s: Callable[[threading.Thread], float], work: W
) -> R:
    """Return what `perform` makes of some work, on a worker; end this whole process if that takes too long.

    A thread that sleeps for ever cannot be ended in any other way, and it may hold what others wait for.

    Args:
        limit_s: how long it may take.
        perform: does it.
        name: of the option that says so.
        waited_s: says how long a thread has waited for others, which is not its own time.
        work: has a `key`.

    Raises:
        Overdue: it took too long. The process ends a moment later.
    """
    try:
        return within_s(limit_s, perform, waited_s, work)
    except Late:
        threading.Timer(GRACE_S, os._exit, [1]).start()
        raise Overdue(
            f"{work.key} took longer than {name} = {limit_s:g}, each time that it was tried",  # type: ignore[attr-defined]
            found=f"not done after {limit_s:g} s; its worker was replaced",
            do=f"look for what waits there, in the teacher's own code or the files that it reads; or raise {name}",
        ) from None


def within_s(limit_s: float, perform: Callable[[W], R], waited_s: Callable[[threading.Thread], float], work: W) -> R:
    """Return what `perform` makes of some work, in a thread of its own. Raises Late: it took too long."""
    ended = queue.SimpleQueue[tuple[R, None] | tuple[None, BaseException]]()

    context = contextvars.copy_context()  # with who is told how far it is

    def run() -> None:
        try:
            ended.put((context.run(perform, work), None))
        except BaseException as error:  # whatever it is, it is the other thread's
            ended.put((None, error))

    thread, began_s = threading.Thread(target=run, name="within a limit", daemon=True), time.monotonic()
    thread.start()
    while (left_s := began_s + limit_s + waited_s(thread) - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            result, error = ended.get(timeout=max(left_s, TICK_S))
            break
    else:
        raise Late
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
