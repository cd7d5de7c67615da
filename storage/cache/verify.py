"""Check every object of a cache against its digest.

Repair means to forget: a bad shard loses its commit, then the objects that it named, and the next build computes it
again. What no commit names goes with it after a day, for until then it may belong to a running build (`garbage.py`).
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import NamedTuple

from storage.cache.cache import Cache
from storage.cache.catalogue import Catalogue
from storage.cache.garbage import GRACE_S, Waste, delete_garbage, find_garbage, list_attempts
from storage.cache.samples import Samples
from storage.errors import BadRequest, CorruptObject, IncompleteCache, Interrupted, StaleCache, StorageFailure
from storage.format.committing import delete_group, read_members, unpack_checked
from storage.format.ledger import untrue_segments
from storage.format.promised import check_positions
from storage.format.shards import Commit, ShardKey
from storage.format.specs import WEIGHTS_JSON
from storage.format.stages import Stage
from storage.format.stores.base import MOST_AHEAD, num_ahead
from storage.inputs import Stored, inputs_of
from storage.inputs.ragged import Ragged
from storage.views import PLAIN
from storage.views.check import libraries

READERS = 4  # shards that are checked at a time, beside those that are ahead of them


class BadShard(NamedTuple):
    """A committed shard that is not what it promises."""

    key: ShardKey
    reason: str


class _Checked(NamedTuple):
    """What was found of one committed shard.

    Attributes:
        key: which.
        commit: as it says, without its table; None: it cannot be read.
        reason: what is wrong with the shard, if anything is.
        row_shapes: of its arrays, where nothing is wrong.
    """

    key: ShardKey
    commit: Commit | None
    reason: str | None
    row_shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        shards: commits read.
        bytes: bytes digested.
        bad: shards that failed, with the reason.
        garbage: groups that no commit names, older than the grace.
        odd: of the bad shards that are whole by themselves, and only not as the others are, the groups.
        untrue: files of the ledger that say of commits what these do not.
    """

    shards: int
    bytes: int
    bad: tuple[BadShard, ...]
    garbage: tuple[str, ...]
    odd: frozenset[str] = frozenset()
    untrue: tuple[str, ...] = ()


def verify(cache: Cache, on_shard: Callable[[int, int], None] | None = None) -> Verification:
    """Read every committed object of a cache and check it.

    Args:
        cache: an open cache.
        on_shard: called with (shards done, shards in all).

    Raises:
        CorruptObject: a promise or a plan is damaged or missing, which no build can make again.
        BadRequest: all shards are whole, but two rows of a dataset have one sample id.
    """
    catalogue = cache.catalogue()
    keys = [ShardKey(*stage, shard) for stage, shards in catalogue.commits.items() for shard in sorted(shards)]
    found: list[_Checked] = []
    with closing(_checked(cache, catalogue, _by_shard(keys))) as shards:
        for checked in shards:
            for each in checked:
                found.append(each)
                if on_shard is not None:
                    on_shard(len(found), len(keys))
    commits = [each.commit for each in found if each.commit is not None]
    # first what is wrong with the cache itself: by a wrong plan or promise a repair would drop good shards
    _check_plans(catalogue, commits)
    _check_promises(cache, commits)
    odd = _odd_ones(found)
    named = [*odd.values(), *(BadShard(each.key, each.reason) for each in found if each.reason is not None)]
    if not named:  # the table of a bad one may not be readable
        _check_ids(Samples(catalogue))
    num_bytes = sum(commit.size_bytes for commit in commits)
    places = {key: place for place, key in enumerate(keys)}
    bad = tuple(sorted(named, key=lambda shard: places[shard.key]))
    garbage = tuple(_garbage(cache, catalogue.commits, {commit.group for commit in commits}))
    # beside whole ones: what a bad one says may be of no type that a summary has
    bad_keys = {shard.key for shard in bad}
    whole = [commit for commit in commits if commit.key not in bad_keys]
    versions = ((commit, catalogue.commits[commit.key[:3]][commit.key.shard]) for commit in whole)
    untrue = tuple(untrue_segments(cache.objects, versions))
    return Verification(len(keys), num_bytes, bad, garbage, frozenset(odd), untrue)


def repair(cache: Cache, found: Verification) -> list[Waste]:
    """Drop every shard that is still bad, so that the next build computes it again; and return what else was deleted.

    That is all garbage (`storage.cache.garbage`), what the dropped commits named among it. What is untrue of the
    ledger goes too: whoever looks next reads the commits.
    """
    for path in found.untrue:
        cache.objects.delete(path)
    catalogue = cache.catalogue({shard.key.dataset for shard in found.bad})
    bad = {shard.key for shard in found.bad}
    for group in _by_shard(sorted(bad, key=_in_order)):
        # again, and with all of their shard: a builder may have mended some since
        ingest = ShardKey(group[0].dataset, None, PLAIN, group[0].shard)
        for key, commit, reason, _ in _check(cache, catalogue, list(dict.fromkeys([ingest, *group]))):
            if key not in bad or (reason is None and (commit is None or commit.group not in found.odd)):
                continue
            cache.objects.delete(key.commit_path)  # first, so that no reader meets a commit without its objects
            if commit is not None:
                delete_group(cache.objects, commit)  # and no other attempt: one may be a builder's at this moment
    return delete_garbage(cache, find_garbage(cache).old)


def _in_order(key: ShardKey) -> tuple[str, int, str, str]:
    return key.dataset, key.shard, key.teacher or "", key.view


def _by_shard(keys: list[ShardKey]) -> Iterator[list[ShardKey]]:
    """Yield the keys of each shard of a dataset together, its ingest first: inputs are read once for all targets."""
    for _, group in groupby(sorted(keys, key=_in_order), key=lambda key: (key.dataset, key.shard)):
        yield list(group)


def _check_plans(catalogue: Catalogue, commits: list[Commit]) -> None:
    """Check that at most one sealed commit of a dataset contradicts its plan; else the plan is the suspect."""
    misplaced: dict[str, list[Commit]] = {}
    for commit in commits:
        planned = catalogue.planned[commit.key.dataset][commit.key.shard]
        spec = catalogue.datasets[commit.key.dataset]
        if not spec.places((planned.start, planned.stop), (commit.start, commit.stop)):
            misplaced.setdefault(commit.key.dataset, []).append(commit)
    for dataset, witnesses in misplaced.items():
        if len(witnesses) > 1:  # one alone may itself be damaged
            raise CorruptObject(
                f"{catalogue.url}/{dataset}/plan is not the plan that its shards were built by",
                found=f"{len(witnesses)} shards of other rows than planned, such as\n"
                + "\n".join(f"{commit.key}: rows {commit.start} to {commit.stop}" for commit in witnesses[:5]),
                do="restore the plan from a copy of the cache",
            )


def _check_promises(cache: Cache, commits: list[Commit]) -> None:
    """Check that not all shards of a promise, and more than one, say they are of another: then it is the suspect.

    Else a promise that was put in the place of another would have all that was built under it dropped. For a shard of
    its weights, `weights.json` speaks as well.
    """
    said: dict[str, list[tuple[str | None, str | None]]] = {}
    for commit in commits:
        if commit.belonging is not None:
            dataset, teacher = commit.key.dataset, commit.key.teacher
            # as the fields of Belonging
            paths = ("cache.json", f"{dataset}/dataset.json", f"{dataset}/{teacher}/teacher.json")
            for path, found, now in zip(paths, commit.belonging, cache.promises.of(dataset, teacher), strict=True):
                if found is not None:
                    said.setdefault(path, []).append((found, now))
            if teacher is not None and (weights := commit.about.get("weights")) is not None:
                # a lost file is told here, not shard by shard
                pair = (weights, cache.promises.weights(dataset, teacher))
                said.setdefault(f"{dataset}/{teacher}/{WEIGHTS_JSON}", []).append(pair)
                if pair[0] == pair[1] and commit.belonging.promise is not None:
                    # a witness too, where a teacher has one shard alone
                    said[paths[2]].append(said[paths[2]][-1])
    for path, pairs in said.items():
        # several witnesses, of one voice, and against the file
        if len(pairs) > 1 and len(set(pairs)) == 1 and pairs[0][0] != pairs[0][1]:
            raise CorruptObject(
                f"{cache.url}/{path} is not that of its shards",
                found=f"{pairs[0][1]}  ({path})",
                expected=f"{pairs[0][0]}, as all of its shards say",
                do="restore it from a copy of the cache",
            )


def _check_ids(samples: Samples) -> None:
    """Check that a sample id is permanent: of one row of its dataset and no other."""
    for dataset in samples.catalogue.datasets:
        if len(twice := samples.duplicates(dataset)):
            raise BadRequest(
                f"{samples.catalogue.url}: {len(twice)} sample ids of {dataset} are each of several rows",
                found="\n".join(f"{sample_id}: rows {rows}" for sample_id, rows in twice.head(5).iter_rows()),
                expected="a permanent id of its own for each sample",
                do="mend the ids in the source, then cache build JOB.toml --as NAME",
            )


def _checked(cache: Cache, catalogue: Catalogue, shards: Iterator[list[ShardKey]]) -> Generator[list[_Checked]]:
    """Yield what there is to be said of each shard, in their order, as many at a time as a far store asks for.

    How large shards are those say that were checked; each is in memory whole.
    """
    coming: deque[Future[list[_Checked]]] = deque()
    largest_bytes: int | None = None
    pool = ThreadPoolExecutor(READERS + MOST_AHEAD)
    try:
        while True:
            ahead = 0 if largest_bytes is None else num_ahead(cache.objects.latency_s, largest_bytes)
            most = READERS + ahead
            coming.extend(
                pool.submit(_check, cache, catalogue, keys) for keys in islice(shards, max(0, most - len(coming)))
            )
            if not coming:
                return
            checked = coming.popleft().result()
            size_bytes = sum(each.commit.size_bytes for each in checked if each.commit is not None)
            largest_bytes = max(size_bytes, largest_bytes or 0)
            yield checked
    finally:
        pool.shutdown(cancel_futures=True)


def _check(cache: Cache, catalogue: Catalogue, keys: list[ShardKey]) -> list[_Checked]:
    """Return what there is to be said of a shard of a dataset, in all its stages, the ingest first if it is asked for.

    Whatever a hostile shard leads to is its own fault, and the others go on. A disk or network that fails is no fault
    of the shard: StorageFailure goes through.
    """
    checked: list[_Checked] = []
    ingest: _Ingest | None = None
    for key in keys:
        commit, shapes, reason = None, {}, None
        try:
            commit = cache.unchecked_commit(key, with_table=True)
            arrays = _read(cache, catalogue, commit)
            shapes = {
                name: (array_S.flat_T if isinstance(array_S, Ragged) else array_S).shape[1:]
                for name, array_S in arrays.items()
            }
            if key.teacher is None:
                kind = inputs_of(catalogue.dataset(key.dataset))
                rows = kind.rows(arrays, commit.about, str(key))
                with suppress(StaleCache):  # other libraries decode otherwise: no fault of the shard
                    kind.look_at(rows)
                ingest = _Ingest(commit, rows, arrays.get("labels"))
            elif ingest is not None:  # else the fault of the ingest, to be built again: these belong to it, or do not
                _check_targets(cache, catalogue, commit, ingest)
                if ingest.labels_S is not None:
                    check_positions(commit, arrays, ingest.labels_S)
        except IncompleteCache:
            continue  # dropped by a repair beside this one
        except (StorageFailure, Interrupted):
            raise
        except CorruptObject as error:
            reason = str(error)
        except Exception as error:
            reason = f"{key} cannot be read\n  found     {type(error).__name__}: {error}"
        slim = None if commit is None else replace(commit, table=commit.table.schema.empty_table())
        checked.append(_Checked(key, slim, reason, shapes if reason is None else {}))
    return checked


class _Ingest(NamedTuple):
    """The ingest of a shard: its commit, with its table, its inputs, and its labels where they are an array."""

    commit: Commit
    inputs_S: Stored
    labels_S: Stored | None


def _read(cache: Cache, catalogue: Catalogue, commit: Commit) -> dict[str, Stored]:
    """Return all arrays of a shard, after every check that a reader makes of one. Raises CorruptObject."""
    promised = catalogue.promises.checked(commit)
    return unpack_checked(promised, read_members(cache.objects, promised), promised.array_names, writeable=False)


def _check_targets(cache: Cache, catalogue: Catalogue, commit: Commit, ingest: _Ingest) -> None:
    """Check that targets are of today's views and of the inputs beside them. Raises CorruptObject."""
    views, key = catalogue.views.get(commit.key.dataset), commit.key
    said, expected = commit.about.get("views"), None if key.view == PLAIN or views is None else views.fingerprint
    if said != expected:  # targets of plain inputs name none
        raise CorruptObject(
            f"{key} was made by other transforms than views.json promises",
            found=f"views fingerprint {said}",
            expected=f"views fingerprint {expected}",
        )
    if ingest.commit.about["inputs_digest"] != commit.about["inputs_digest"]:
        raise CorruptObject(f"{key} was computed from other inputs than those now in {ingest.commit.key}")
    dataset, made_by = catalogue.dataset(key.dataset), commit.about.get("libraries")
    if (key.view != PLAIN or dataset.encoded) and made_by != libraries(dataset, key.view):
        return  # other libraries show other images: that is this machine's affair, and no fault of the shard
    try:
        cache.check_view(ingest.commit, commit, ingest.inputs_S, views)
    except StaleCache as error:
        raise CorruptObject(error.what, error.found, error.expected, error.do) from None


def _odd_ones(found: list[_Checked]) -> dict[str, BadShard]:
    """Return, by their groups, shards of which an array has rows of another shape than in most.

    Of a feature nothing promises what shape that is.
    """
    shapes: dict[tuple[str, str | None, str], Counter[tuple[int, ...]]] = {}
    for key, _, _, row_shapes in found:
        for name, shape in row_shapes.items():
            shapes.setdefault((key.dataset, key.teacher, name), Counter())[shape] += 1
    odd = {}
    for key, commit, _, row_shapes in found:
        for name, shape in row_shapes.items():
            usual = shapes[key.dataset, key.teacher, name].most_common(1)[0][0]
            if shape != usual and commit is not None:
                error = CorruptObject(
                    f"{key}: {name} is not as in the other shards", f"rows of {shape}", f"rows of {usual}"
                )
                odd[commit.group] = BadShard(key, str(error))
    return odd


def _garbage(cache: Cache, stages: Iterable[Stage], groups: set[str]) -> Iterator[str]:
    """Yield Zarr groups (of format 2, folders) that no readable commit names and no running build can be writing."""
    before_s = time.time() - GRACE_S  # of this machine: what only looks writes nothing to ask another's
    for stage in stages:
        for attempt in list_attempts(cache.objects, stage):
            if attempt.path not in groups and attempt.modified_s < before_s:
                yield attempt.path
