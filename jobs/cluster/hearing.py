"""What Dask workers say of their work before its end: how many rows of it are done."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from teacher_cache.work.pieces import Done, Work
from teacher_cache.work.telling import Underway, telling

if TYPE_CHECKING:
    from distributed import Client

R = TypeVar("R")


class Hearing:
    """Hears what workers say of one stage.

    Args:
        client: through which they do.
    """

    def __init__(self, client: Client):
        self._topic, self._said = f"rows-{time.time_ns():x}", queue.SimpleQueue[tuple[str, int]]()
        client.subscribe_topic(self._topic, lambda event: self._said.put(event[1]))

    def of(self, perform: Callable[[Work], Done]) -> Callable[[Work], Done | Underway]:
        """Return what does a piece of work on a worker, and says how far it is."""
        return partial(_told, self._topic, perform)

    def heard(self) -> list[tuple[str, Done | Underway]]:
        """Return the keys of work, and how far each is, of what was said since."""
        said = (self._said.get() for _ in range(self._said.qsize()))
        return [(key, Underway(rows)) for key, rows in said]


def _told(topic: str, perform: Callable[[Work], Done], work: Work) -> Done:
    from distributed import get_worker

    worker = get_worker()  # known to this thread alone
    with telling(lambda underway: worker.log_event(topic, (str(work.key), underway.rows))):
        return perform(work)
