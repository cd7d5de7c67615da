"""One build at a time of each part: what is missing is looked at again once nobody else is at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from storage.cache import Cache
from storage.cache.lease import hold
from storage.cache.watcher import Watcher
from teacher_cache.building.prepared import PreparedBuild
from teacher_cache.building.runners import Runner
from teacher_cache.building.survey import prepare_build

Kept = Callable[[Runner], Runner]


@contextlib.contextmanager
def alone(build: PreparedBuild, watcher: Watcher, *, wait: bool) -> Iterator[tuple[PreparedBuild, Kept]]:
    """Hold the cache's lease where rows are missing; yield what is to be built then, and what keeps a runner to it.

    Where nothing is missing there is no lease, and nothing is written (invariant 2).

    Args:
        build: as it was prepared.
        watcher: is told who is waited for.
        wait: for another build of the same part to end.

    Raises:
        TryAgain: another build of the same part runs.
    """
    if not build.num_missing:
        yield build, lambda runner: runner
        return
    request = build.request
    again = f"cache build {request.job}"
    do = f"{again} --wait    # begins when that has ended; or try again later"
    with hold(Cache.create(request.cache).objects, request.part, wait=wait, note=watcher.note, do=do) as lease:
        yield prepare_build(request) if lease.waited or _has_moved(build) else build, lease.kept


def _has_moved(build: PreparedBuild) -> bool:
    """Return whether the cache holds other shards, or plans others, than when a build was prepared."""
    known = build.catalogue
    names = [source.name for source in build.request.sources]
    now = Cache.open(build.request.cache).catalogue(names)
    if known is None:
        return bool(now.datasets)
    if known.about.id != now.about.id or known.planned.keys() != now.planned.keys():
        return True
    longer = any(len(known.planned[name]) != len(shards) for name, shards in now.planned.items())
    empty: dict[int, str] = {}
    stages = known.commits.keys() | now.commits.keys()
    return longer or any(known.commits.get(s, empty).keys() != now.commits.get(s, empty).keys() for s in stages)
