"""How a call travels to a Dask worker: as bytes that are opened there, in our rooms.

Dask alone would send names, and whoever unpickles them imports what is called `jobs` there: the scheduler, and a worker
that was started in a folder where somebody keeps jobs of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from stillroom_start import ROOMS, take_rooms
from storage.errors import BadRequest

R = TypeVar("R")


def sent(perform: Callable[..., R], *arguments: object) -> Callable[[], R]:
    """Return a call that Dask sends by value: bytes to everybody but the worker that makes it."""
    call, pickled = opener(), packed(perform, *arguments)
    return lambda: call(pickled)


def packed(perform: Callable[..., Any], *arguments: object) -> bytes:
    """Return a call as bytes, for what an `opener` returned."""
    import cloudpickle  # Dask's own

    return cloudpickle.dumps((perform, arguments))  # type: ignore[no-any-return]


def opener() -> Callable[[bytes], Any]:
    """Return what makes a `packed` call on a worker; Dask sends it by value, once for many calls."""

    def call(
        pickled: bytes,
    ) -> Any:  # a function in a function, which cloudpickle sends whole; so its imports are within
        import pickle

        from stillroom_start import take_rooms

        take_rooms()
        perform, arguments = pickle.loads(pickled)  # noqa: S301 - from our own command
        return perform(*arguments)

    return call


def refused_by(error: object) -> BadRequest | None:
    """Return what is wrong with a worker that cannot import our rooms; None if an error says nothing of the kind."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else None
    if missing not in (take_rooms.__module__, *ROOMS):
        return None
    return BadRequest(
        "a Dask worker cannot import what this command is made of",
        found=str(error),
        expected="the same Stillroom in the Python of every worker, and no other module of its names loaded before it",
        do="install it there; or start the worker without what loads the other one (--preload, DASK_…__PRELOAD)",
    )
