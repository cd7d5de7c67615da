"""Who of a cluster's workers has come, in which environment; and if nobody comes, why."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from jobs.cluster.versions import Versions
from storage.errors import TryAgain

if TYPE_CHECKING:
    from distributed import Client

NO_WORKERS_S = 120.0
UNSEEN_S = 30.0  # without a look: who was there meanwhile is not known
SHOWN = 3


class Jobs(Protocol):
    """The jobs of a batch scheduler in which workers run."""

    def look(self, client: Client, workers: int, absent_s: float) -> None:
        """Tell of jobs without a worker, and replace those that have ended; raise if none will come."""


class Attendance:
    """Looks after the workers of a client, for as long as a command needs them.

    Args:
        note: is told what a user should know, such as why jobs wait.
        allow_versions: whether workers may have another Python, torch or Stillroom than this command.

    Attributes:
        ours: whether workers are children of this command, and have what it has.
        jobs: in which the workers run; None: they are started in another way, and come within two minutes.
    """

    def __init__(self, note: Callable[[str], None] = lambda text: None, *, allow_versions: bool = False):
        self.note, self.ours = note, False
        self.jobs: Jobs | None = None
        self._seen_s = self._looked_s = time.monotonic()
        self._versions = Versions(note, allowed=allow_versions)
        self._there: set[str] | None = None  # at the last look; None: nobody ever was

    def look(self, client: Client, workers: Mapping[str, int]) -> None:
        """Look at the workers that there are now; to be called about once a second.

        Raises:
            BadRequest: jobs of a batch scheduler cannot start, or a worker has another environment.
            TryAgain: there have been no workers for too long.
        """
        now = time.monotonic()
        if workers or now - self._looked_s > UNSEEN_S:
            self._seen_s = now
        self._looked_s = now
        if workers and not self.ours:
            self._versions.check(client, workers)
        absent_s = now - self._seen_s
        if self.jobs is not None:
            self.jobs.look(client, len(workers), absent_s)
        elif absent_s > NO_WORKERS_S:
            raise TryAgain(
                f"no Dask workers for {NO_WORKERS_S:.0f} s", do="start workers, then run the same command again"
            )
        elif not self.ours:
            self._tell(set(workers))

    def _tell(self, there: set[str]) -> None:
        """Tell who has gone since the last look, and who has come: a link that drops is seen nowhere else."""
        if self._there is None:  # none were there yet: with these a command begins
            self._there = there or None
            return
        before, self._there = self._there, there
        for who, verb in ((before - there, "gone"), (there - before, "there now")):
            if who:
                named = ", ".join(sorted(who)[:SHOWN]) + (", …" if len(who) > SHOWN else "")
                self.note(f"workers {verb}: {len(who)} ({named}); there are {len(there)}")
