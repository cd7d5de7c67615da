from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from student_train.feed.sending import draw_ahead


def feed_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("feed")]


def numbers(drawn: list[int], fails_at: int | None = None) -> Generator[int, None, None]:
    try:
        for number in range(5):
            if number == fails_at:
                raise ValueError(f"no {number}")
            drawn.append(number)
            yield number
    finally:
        drawn.append(-1)


def test_all_items_come_in_order() -> None:
    assert list(draw_ahead(numbers([]), 2)) == [0, 1, 2, 3, 4]


def test_a_thread_draws_so_many_ahead_and_no_more() -> None:
    drawn: list[int] = []
    items = draw_ahead(numbers(drawn), 2)
    next(items)
    deadline = time.monotonic() + 10
    while len(drawn) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert drawn == [0, 1, 2]
    items.close()  # type: ignore[attr-defined]


def test_an_error_comes_in_its_turn() -> None:
    found: list[int] = []
    with pytest.raises(ValueError, match="no 3"):
        found.extend(draw_ahead(numbers([], fails_at=3), 2))
    assert (found, feed_threads()) == ([0, 1, 2], [])


def test_whoever_stops_early_closes_the_generator_and_ends_the_thread() -> None:
    drawn: list[int] = []
    items = draw_ahead(numbers(drawn), 2)
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert (drawn[-1], feed_threads()) == (-1, [])
