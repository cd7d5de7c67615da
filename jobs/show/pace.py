"""How fast things are counted, and how long the rest takes: steady enough to be read, quick to tell of a halt."""

from __future__ import annotations

import itertools
import math
from collections import deque

WINDOW_S = 60.0  # that a rate is of
FEWEST_MARKS = 4  # and at least of these, where each takes long, as a shard may


class Pace:
    """The rate of the last minute.

    Between two marks time goes on and the count does not. A rate by the clock would sink from one to the next and leap
    back; so it counts time only up to the last mark, unless no mark has ever been so long in coming.

    >>> pace = Pace(0.0)
    >>> for now in (10.0, 20.0, 30.0):
    ...     pace.mark(now, 100)
    >>> [pace.per_s(now) for now in (30.0, 35.0, 40.0, 60.0)]
    [10.0, 10.0, 10.0, 6.0]
    """

    def __init__(self, began_s: float):
        self._marks = deque([(began_s, 0)])
        self._count = 0

    def mark(self, now_s: float, count: int) -> None:
        """Count some more."""
        self._count += count
        self._marks.append((now_s, self._count))
        while len(self._marks) > FEWEST_MARKS + 1 and self._marks[1][0] <= now_s - WINDOW_S:
            self._marks.popleft()

    def per_s(self, now_s: float) -> float | None:
        """Return the rate, or None before anything was counted."""
        (first_s, before), (last_s, count) = self._marks[0], self._marks[-1]
        if count == before:
            return None
        times = [mark_s for mark_s, _ in self._marks]
        longest_s = max(after - each for each, after in itertools.pairwise(times))
        return (count - before) / max(last_s - first_s, now_s - longest_s - first_s, 1e-3)


def told(seconds: float) -> str:
    """Return a time that is estimated, no more exact than it is, and rounded up.

    >>> [told(each) for each in (0.2, 7.4, 58, 100, 5000, 100_000)]
    ['1 s', '8 s', '1 min', '2 min', '1 h 30 min', '1 d 4 h']
    """
    if seconds <= 50:
        return f"{max(1, math.ceil(seconds))} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return _two(math.ceil(minutes / 10) * 10, 60, "h", "min")
    return _two(math.ceil(minutes / 60), 24, "d", "h")


def _two(count: int, per: int, large: str, small: str) -> str:
    whole, rest = divmod(count, per)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"
