"""Work that is done ahead on threads, while whoever wants it computes; in order, and a bounded number ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterable[T], work: Callable[[T], R], *, threads: int) -> Iterator[R]:
    """Yield what is made of each item, in order; two a thread are under way.

    >>> list(ahead([3, 1, 2], lambda n: n * n, threads=2))
    [9, 1, 4]
    """
    pool = ThreadPoolExecutor(threads)
    try:
        under_way: deque[Future[R]] = deque()
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) >= 2 * threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
