"""Two years of nights, in which builds are killed, fail and are misled: what is left lying about, and what is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.pairs import Figure
from tests.nights import spend

NIGHTS = 730


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the most that a night leaves of what must not grow; whatever is lost is an AssertionError."""
    began_s = time.perf_counter()
    nights = spend(folder, NIGHTS)
    seconds = time.perf_counter() - began_s
    # one more lease for each kill in a row at that very write; whoever lives clears all away
    for kind, most in (("lease", 8), ("ledger", 16), ("attempt", 16), ("temporary", 16)):
        yield Figure(f"{NIGHTS} nights: most {kind} objects", [nights.most[kind]], most, "at most")
    disturbed = sum(count for name, count in nights.happened.items() if not name.endswith("done"))
    yield Figure(f"{NIGHTS} nights: disturbed commands", [disturbed], NIGHTS / 4, "at least")
    yield Figure(f"{NIGHTS} nights: shards, none of them lost", [nights.shards], NIGHTS, "at least")
    yield Figure(f"{NIGHTS} nights: a night, all in all", [seconds / NIGHTS], 5.0, "at most", " s")
