"""What is told of a cache when it is opened for people: what it cannot prove; what may be done with it."""

from __future__ import annotations

from jobs.show import terminal
from storage.cache import Cache
from storage.errors import printable


def open_cache(url: str) -> Cache:
    """Return a cache, and tell what it cannot prove."""
    opened = Cache.open(url)
    if opened.unproven is not None:
        terminal.errors.print(opened.unproven, markup=False)
    return opened


def notice_of(cache: Cache) -> str | None:
    """Return what a command prints of a cache's notice, if it has one; it is whatever somebody has written there."""
    notice = cache.notice
    return None if notice is None else f"notice of {cache.url}:\n{printable(notice)}"
