"""Whether workers compute with what this command does: Python, torch, Stillroom."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cluster.sending import refused_by, sent
from stillroom_start import HERE, ROOMS
from storage.digests import digest
from storage.errors import BadRequest

if TYPE_CHECKING:
    from distributed import Client

PACKAGES = ("torch", "stillroom")
SHOWN = 3


class Versions:
    """Compares each worker with this command, once.

    Args:
        note: is told what differs where that is allowed.
        allowed: whether it is.
    """

    def __init__(self, note: Callable[[str], None], *, allowed: bool):
        self._note, self._allowed = note, allowed
        self._known: set[str] = set()

    def check(self, client: Client, workers: Iterable[str]) -> None:
        """Compare workers that have not been seen before.

        Raises:
            BadRequest: one of them has another Python, torch or Stillroom, or cannot import ours.
        """
        new = set(workers) - self._known
        if not new:
            return
        # By Dask's own means first: another Python cannot so much as open what we send.
        answer: Any = client.get_versions(packages=list(PACKAGES))
        said = answer["workers"]
        found = {address: differences(_of(said[address])) for address in new if said.get(address)}
        alike = [address for address, differs in found.items() if not differs]
        if alike:
            found |= _sources(client, alike)
        self._known |= set(found)  # who has gone meanwhile is asked if it comes again
        if others := {address: differs for address, differs in found.items() if differs}:
            self._tell(others)

    def _tell(self, others: Mapping[str, str]) -> None:
        lines = [f"{address}: {differs}" for address, differs in sorted(others.items())]
        more = [f"… {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        what = "workers come with another environment than this command's"
        if not self._allowed:
            raise BadRequest(
                what,
                found="\n".join(lines[:SHOWN] + more),
                expected=", ".join(f"{name} {there}" for name, there in here().items()),
                do="install the same there (the same .venv, on a disk that all see); or --allow-versions, where you "
                "know that it computes the same",
            )
        for line in lines[:SHOWN] + more:
            self._note(f"note: a worker with another environment, {line}")


@cache
def here() -> dict[str, str]:
    """Return what this process computes with, by name."""
    return {"Python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def differences(there: Mapping[str, str | None]) -> str:
    """Return what another process computes with where that differs in what may matter, as text; "" if nothing does.

    Of Python its minor version; of torch not for which device it was built.

    >>> differences(here() | {"torch": "1.0"}), differences(here() | {"torch": None}), differences(here())
    ('torch 1.0', 'torch missing', '')
    """
    others = [
        f"{name} {there.get(name) or 'missing'}"
        for name, own in here().items()
        if (there.get(name) is not None or name != "stillroom")  # run from its files, which are compared themselves
        and _comparable(name, there.get(name) or "") != _comparable(name, own)
    ]
    return ", ".join(others)


def sources() -> str:
    """Return a digest of the code of the four rooms, which a version does not name while it is worked on."""
    root = Path(HERE)
    files = sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))
    return digest(b"".join(f"{path.relative_to(root)}\n".encode() + path.read_bytes() for path in files))


def _comparable(name: str, text: str) -> str:
    return ".".join(text.split(".")[:2]) if name == "Python" else text.partition("+")[0]


def _of(said: Mapping[str, Any]) -> dict[str, str | None]:
    packages = said["packages"]
    return {"Python": ".".join(packages["python"].split(".")[:3]), **{name: packages[name] for name in PACKAGES}}


def _sources(client: Client, workers: list[str]) -> dict[str, str]:
    """Return how the code of workers differs from ours. Raises BadRequest: they cannot import it."""
    own, answers = sources(), client.run(sent(sources), workers=workers, on_error="return")
    found = {}
    for address, answer in answers.items():
        if (refusal := refused_by(answer)) is not None:
            raise refusal
        if isinstance(answer, str):
            found[address] = "" if answer == own else f"stillroom {version('stillroom')}, of other files than here"
    return found
