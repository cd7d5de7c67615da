"""A worker whose job will end: what it begins, and what it leaves to others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from jobs.cluster.batch import leaving
from jobs.cluster.batch.leaving import ENDS, LIMIT, in_time
from storage.errors import BadRequest, Overdue


class Work(NamedTuple):
    key: str
    do: Callable[[], object]


def perform(work: Work) -> object:
    return work.do()


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return the workers that have been told to leave."""
    found: list[Any] = []
    monkeypatch.setattr(leaving, "leave", found.append)
    monkeypatch.setattr(leaving, "_done", leaving._Done())
    monkeypatch.setattr("distributed.get_worker", lambda: "worker")
    return found


def job(monkeypatch: pytest.MonkeyPatch, limit_s: float, left_s: float) -> None:
    """Let this worker be of a job of such a limit, with so many seconds to use."""
    monkeypatch.setenv(LIMIT, str(limit_s))
    monkeypatch.setenv(ENDS, str(time.time() + left_s + leaving.margin_s(limit_s)))


def test_a_worker_whose_job_has_no_end_does_all_work(left: list[object]) -> None:
    assert in_time(perform, Work("a", lambda: 7)) == 7
    assert left == []


def test_nothing_is_begun_that_takes_longer_than_there_is_time(
    left: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Reschedule

    job(monkeypatch, 600, 30)
    leaving._done.longest_s = 29.0
    assert in_time(perform, Work("a", lambda: 7)) == 7
    leaving._done.longest_s = 31.0
    with pytest.raises(Reschedule):
        in_time(perform, Work("b", lambda: pytest.fail("begun")))
    assert left == ["worker"]


def test_a_worker_that_comes_when_the_time_is_over_says_so(left: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    job(monkeypatch, 60, 0)
    with pytest.raises(Overdue, match="the time of each job was over when its worker came"):
        in_time(perform, Work("a", lambda: pytest.fail("begun")))
    assert left == ["worker"]


def test_what_is_not_done_in_more_than_half_of_a_job_needs_longer_jobs(
    left: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = threading.Event()
    job(monkeypatch, 2.5, 1.3)
    with pytest.raises(BadRequest, match="a takes longer than a job of this cluster may"):
        in_time(perform, Work("a", never.wait))
    never.set()
    assert left == ["worker"]


def test_what_is_not_done_in_the_rest_of_a_job_has_another_one(
    left: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Reschedule

    never = threading.Event()
    job(monkeypatch, 3600, 1.3)
    with pytest.raises(Reschedule):
        in_time(perform, Work("a", never.wait))
    never.set()
    assert left == ["worker"]
