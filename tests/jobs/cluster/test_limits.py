"""How long work may take: its own time counts, not that in which it waits for others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from jobs.cluster import limits
from jobs.cluster.limits import within
from storage.errors import Overdue
from teacher_cache.work.pieces import Turns, waited_s


class Work(NamedTuple):
    key: str
    do: Callable[[], object]


def perform(work: Work) -> object:
    return work.do()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the statuses with which this process would have ended."""
    found: list[int] = []
    monkeypatch.setattr(limits, "GRACE_S", 0.0)
    monkeypatch.setattr("os._exit", found.append)
    return found


def test_what_is_done_in_time_is_returned_or_raised(exits: list[int]) -> None:
    assert within(30, perform, "limit", waited_s, Work("a", lambda: 7)) == 7
    with pytest.raises(ZeroDivisionError):
        within(30, perform, "limit", waited_s, Work("a", lambda: 1 // 0))
    assert exits == []


def test_what_takes_too_long_is_named_and_ends_the_process(exits: list[int]) -> None:
    never = threading.Event()
    with pytest.raises(Overdue) as caught:
        within(0.2, perform, "limit", waited_s, Work("photos/big/plain/00003", never.wait))
    never.set()
    assert caught.value.what == "photos/big/plain/00003 took longer than limit = 0.2, each time that it was tried"
    while not exits:
        time.sleep(0.01)
    assert exits == [1]


@pytest.mark.slow
def test_who_waits_for_a_turn_is_not_late_and_who_has_it_is(exits: list[int]) -> None:
    turns, never, has_it = Turns(1), threading.Event(), threading.Event()

    def sleep() -> None:
        with turns:
            has_it.set()
            never.wait()

    def wait() -> str:
        with turns:
            return "done"

    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(within, 6.0, perform, "limit", waited_s, Work("late", sleep))
        has_it.wait()
        patient = pool.submit(within, 3.0, perform, "limit", waited_s, Work("patient", wait))
        with pytest.raises(Overdue):
            late.result()
        assert not patient.done()
        never.set()
        assert patient.result() == "done"
