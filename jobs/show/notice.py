"""What may be done with a cache, as whoever published it says: shown by whatever opens it for people."""

from __future__ import annotations

from storage.cache import Cache
from storage.errors import printable


def notice_of(cache: Cache) -> str | None:
    """Return what a command prints of a cache's notice, if it has one; it is whatever somebody has written there."""
    notice = cache.notice
    return None if notice is None else f"notice of {cache.url}:\n{printable(notice)}"
