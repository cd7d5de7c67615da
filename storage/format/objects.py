"""Local folders and object stores behind one small interface: named byte strings, written whole.

Both promise the same: `put` is atomic and durable, and of any number of concurrent `create` calls for one path
exactly one returns True. That is all the concurrency control the cache needs (FORMAT.md, "Commits").
"""

from __future__ import annotations

from storage.errors import BadRequest
from storage.format.stores.base import TEMPORARY_PREFIX, Listing, ObjectInfo, Objects, Span, num_at_once
from storage.format.stores.kept import KeptObjects
from storage.format.stores.local import LocalObjects
from storage.format.stores.remote import RemoteObjects
from storage.format.stores.web import SCHEMES, WebObjects
from storage.options import redacted

__all__ = [
    "TEMPORARY_PREFIX",
    "KeptObjects",
    "Listing",
    "LocalObjects",
    "ObjectInfo",
    "Objects",
    "RemoteObjects",
    "Span",
    "WebObjects",
    "num_at_once",
    "open_objects",
]


def open_objects(url: str) -> Objects:
    """Return the objects below a local folder, an object store's prefix, or the address of a published cache.

    Raises:
        BadRequest: the address holds credentials, which would be in every message, and in what is kept of a run.
    """
    if (shown := redacted(url)) != url:
        raise BadRequest(
            f"{shown} holds credentials",
            do="put them into the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if "://" not in url or url.startswith("file:///"):
        return LocalObjects(url.removeprefix("file://"))
    return WebObjects(url) if url.lower().startswith(SCHEMES) else RemoteObjects(url)
