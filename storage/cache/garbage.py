"""What lies in a cache and no commit names: attempts that lost or died, files half written, spare ledger files.

Young ones stay, for they may be a running builder's: its group is there before its commit. How old an object is, is
said by one clock alone, that which dates them all.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from storage.cache.cache import Cache
from storage.errors import CorruptObject, IncompleteCache, UnsupportedFormat
from storage.format.committing import delete_attempt
from storage.format.ledger import spare_segments
from storage.format.objects import ObjectInfo, Objects, num_at_once
from storage.format.shards import GROUP_NAME, Committed, ShardKey, stage_folder
from storage.format.stages import Stage, look_at_stages

GRACE_S = 24 * 3600.0  # what is younger may be a running builder's
ATTEMPT, TEMPORARY, LEDGER_FILE = "attempt", "temporary file", "ledger file"
GROUP_PATH = re.compile(rf"(?P<group>{GROUP_NAME.pattern})(/.*)?")


class Waste(NamedTuple):
    """What no commit names.

    Attributes:
        kind: attempt, temporary file or ledger file.
        path: of an object, or of an attempt of format 2, which is a folder.
        size_bytes: of all of it.
        key: of an attempt, the shard that it was one of.
    """

    kind: str
    path: str
    size_bytes: int
    key: ShardKey | None = None


@dataclass(frozen=True)
class Garbage:
    """What `find_garbage` found.

    Attributes:
        old: what may be deleted.
        young: what no commit names either, and may be at work.
        unreadable: commits that say nothing of what they name, so that all attempts of their shards stay.
    """

    old: tuple[Waste, ...]
    young: tuple[Waste, ...]
    unreadable: tuple[str, ...]


class Attempt(NamedTuple):
    """A Zarr group that lies in a cache, whoever names it."""

    key: ShardKey
    path: str
    size_bytes: int
    modified_s: float


def find_garbage(cache: Cache, grace_s: float = GRACE_S, on_stage: Callable[[int, int], None] | None = None) -> Garbage:
    """Return what no commit of a cache names; what is younger than the grace apart.

    A commit is read only where a shard has more or fewer groups than one.

    Args:
        cache: an open cache.
        grace_s: an age, in seconds.
        on_stage: called with (stages looked at, stages in all).

    Raises:
        MissingObject: a promise is lost, and with it what lies under it.
        StorageFailure: the disk or store refused.
    """
    before_s = cache.objects.now_s() - grace_s
    found: dict[bool, list[Waste]] = {True: [], False: []}
    unreadable: list[str] = []
    # Commits before groups: the group of a commit that was listed is there, and one that came since is read.
    listed = {stage: shards for each in look_at_stages(cache.objects) for stage, shards in each.commits.items()}
    for done, (stage, committed) in enumerate(listed.items()):
        for attempt in _unnamed(cache, stage, committed, unreadable):
            waste = Waste(ATTEMPT, attempt.path, attempt.size_bytes, attempt.key)
            found[attempt.modified_s < before_s].append(waste)
        if on_stage is not None:
            on_stage(done + 1, len(listed))
    others = [(TEMPORARY, info) for info in cache.objects.leftovers()]
    others += [(LEDGER_FILE, info) for info in spare_segments(cache.objects, listed)]
    for kind, info in others:
        found[info.modified_s < before_s].append(Waste(kind, info.path, info.size_bytes))
    return Garbage(tuple(found[True]), tuple(found[False]), tuple(unreadable))


def delete_garbage(cache: Cache, old: Iterable[Waste]) -> list[Waste]:
    """Delete what was found to be garbage, unless a commit names it by now; return what was deleted.

    Raises:
        StorageFailure: the disk or store refused.
    """

    def delete(waste: Waste) -> bool:
        if waste.key is None:
            cache.objects.delete(waste.path)
        elif _named(cache, waste.key) in (waste.path, None):
            return False  # committed since, or nobody can tell
        else:
            delete_attempt(cache.objects, waste.path)
        return True

    wastes = list(old)
    with ThreadPoolExecutor(num_at_once(cache.objects)) as pool:
        return [waste for waste, is_deleted in zip(wastes, pool.map(delete, wastes), strict=True) if is_deleted]


def list_attempts(objects: Objects, stage: Stage) -> Iterator[Attempt]:
    """Yield the Zarr groups of a stage, whether a commit names them or not.

    One of format 2 is as young as its youngest object. What is not named as attempts are is not ours.
    """
    folder = stage_folder(*stage)
    parts: dict[str, list[ObjectInfo]] = {}
    for info in objects.walk(folder):
        found = GROUP_PATH.fullmatch(info.path.removeprefix(f"{folder}/"))
        if found is None or found["group"].endswith(".zip") != (found[5] is None):
            continue
        if found[5] is not None:
            parts.setdefault(found["group"], []).append(info)
        else:
            yield Attempt(ShardKey(*stage, int(found[2])), info.path, info.size_bytes, info.modified_s)
    for group, infos in parts.items():
        key = ShardKey(*stage, int(group.partition("-")[0]))
        size_bytes, modified_s = sum(info.size_bytes for info in infos), max(info.modified_s for info in infos)
        yield Attempt(key, f"{folder}/{group}", size_bytes, modified_s)


def _unnamed(cache: Cache, stage: Stage, committed: Committed, unreadable: list[str]) -> Iterator[Attempt]:
    """Yield the attempts of a stage that no commit names; add commits that nobody can read to a list."""
    # numbers alone at first: there may be a million, and of nearly all a commit and its group
    shards = array("q", (attempt.key.shard for attempt in list_attempts(cache.objects, stage)))
    numbers, counts = np.unique(np.frombuffer(shards, np.int64), return_counts=True)
    doubtful = set(numbers[(counts > 1) | ~np.isin(numbers, committed.table["shard"].to_numpy())].tolist())
    named: dict[int, str | None] = {}
    for attempt in list_attempts(cache.objects, stage) if doubtful else ():
        shard = attempt.key.shard
        if shard not in doubtful:
            continue
        if shard not in named:
            named[shard] = _named(cache, attempt.key)
            if named[shard] is None:
                unreadable.append(attempt.key.commit_path)
        if named[shard] is not None and named[shard] != attempt.path:
            yield attempt


def _named(cache: Cache, key: ShardKey) -> str | None:
    """Return the group that a shard's commit names, "" if it has no commit; None: it cannot be read."""
    try:
        return cache.unchecked_commit(key).group
    except IncompleteCache:
        return ""
    except (CorruptObject, UnsupportedFormat):
        return None
