"""Where work may go, and what is tried again: tables. Real clusters are in the tests of both halves."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from jobs.cluster.flight import Left, Places, _Attempt, alone, one_each, window
from storage.errors import BadRequest, Overdue, WorkerDied

WORKERS = {"tcp://a": 2, "tcp://b": 3}


@pytest.mark.parametrize(
    ("places", "workers", "taken", "free"),
    [
        (window, WORKERS, [], [None] * 10),
        (window, WORKERS, [None] * 9, [None]),
        (window, WORKERS, [None] * 12, []),  # a worker has gone
        (window, {}, [], [None] * 4),
        (alone, WORKERS, [], [None]),
        (alone, WORKERS, [None], []),
        (one_each, WORKERS, [], ["tcp://a", "tcp://b"]),
        (one_each, WORKERS, ["tcp://a"], ["tcp://b"]),
        (one_each, WORKERS, ["tcp://b", "tcp://c"], ["tcp://a"]),
        (one_each, {}, ["tcp://c"], []),
    ],
)
def test_places_are_free_within_what_a_stage_allows(
    places: Places, workers: dict[str, int], taken: list[str | None], free: list[str | None]
) -> None:
    assert list(places(workers, taken)) == free


class Work(NamedTuple):
    key: str = "work"


def tries(result: object, *, deaths: int) -> int:
    """Return how often work that always ends so is begun."""
    attempt: _Attempt[Work] | None = _Attempt(Work())
    count = 0
    while attempt is not None:
        attempt, count = attempt.after(result, deaths), count + 1
    return count


@pytest.mark.parametrize(
    ("result", "deaths", "begun"),
    [
        ("done", 1, 1),
        (BadRequest("no such cache"), 1, 1),
        (OSError("a hiccup"), 1, 3),
        (Overdue("an hour"), 1, 3),
        (WorkerDied("killed"), 0, 1),
        (WorkerDied("killed"), 1, 2),
        (Left("its job is about to end"), 1, 3),
    ],
)
def test_only_what_is_no_fact_about_the_request_is_tried_again(result: object, deaths: int, begun: int) -> None:
    assert tries(result, deaths=deaths) == begun


@pytest.mark.parametrize("result", [Left("its job is about to end"), WorkerDied("its node failed")])
def test_work_that_gets_further_each_time_is_tried_as_often_as_it_takes(result: Exception) -> None:
    attempt: _Attempt[Work] | None = _Attempt(Work())
    for progress in range(1, 50):
        assert attempt is not None
        attempt = attempt.after(result, 0, progress)
    assert attempt == _Attempt(Work(), progress=49)
    while attempt is not None:  # and where it gets no further, no more often than at first
        attempt = attempt.after(result, 0, 49)
