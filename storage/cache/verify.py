"""Check every object of a cache against its digest, and clear away what no commit names.

Repair means to forget: a bad shard loses its commit, then the objects that it named, and the next build computes it
again. Nothing else is deleted before a day has passed, for it may belong to a running build.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from storage.cache.cache import Cache
from storage.cache.catalogue import Catalogue
from storage.cache.samples import Samples
from storage.encodings.base import all_finite
from storage.errors import BadRequest, CorruptObject, IncompleteCache
from storage.format.committing import delete_attempt, delete_group, of_kind, read_members, unpack_checked
from storage.format.rows import ShardRows
from storage.format.shards import GROUP_NAME, Commit, ShardKey, stage_folder
from storage.format.specs import WEIGHTS_JSON, DatasetSpec, TeacherSpec
from storage.format.stages import list_stages
from storage.inputs.ragged import Ragged
from storage.views import PLAIN

FEATURE = "feature/"
GRACE_S = 24 * 3600.0  # an uncommitted group younger than this may belong to a running build


class BadShard(NamedTuple):
    """A committed shard that is not what it promises."""

    key: ShardKey
    reason: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        shards: commits read.
        bytes: bytes digested.
        bad: shards that failed, with the reason.
        garbage: groups that no commit names, older than the grace.
    """

    shards: int
    bytes: int
    bad: tuple[BadShard, ...]
    garbage: tuple[str, ...]


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
    promised = _Promised.by(catalogue)
    bad: list[BadShard] = []
    misplaced: list[Commit] = []
    found: list[Commit] = []
    with ThreadPoolExecutor(max_workers=4) as pool:
        checks = pool.map(lambda key: _check(cache, key, promised), keys)
        for done, (key, (commit, reason)) in enumerate(zip(keys, checks, strict=True), start=1):
            if commit is not None:
                found.append(commit)
                if not promised.places(commit):
                    misplaced.append(commit)
            if reason is not None:
                bad.append(BadShard(key, reason))
            if on_shard is not None:
                on_shard(done, len(keys))
    # first what is wrong with the cache itself: by a wrong plan or promise a repair would drop good shards
    _check_plans(cache, misplaced)
    _check_promises(cache, found)
    if not bad:  # the table of a bad one may not be readable
        _check_ids(Samples(catalogue))
    num_bytes = sum(commit.size_bytes for commit in found)
    garbage = _garbage(cache, {commit.group for commit in found})
    return Verification(len(keys), num_bytes, tuple(bad), tuple(garbage))


def repair(cache: Cache, found: Verification) -> None:
    """Drop every shard that is still bad, so that the next build computes it again, and all garbage."""
    promised = _Promised.by(cache.catalogue({shard.key.dataset for shard in found.bad}))
    for key, _ in found.bad:
        commit, reason = _check(cache, key, promised)  # again: a builder may have mended it since
        if reason is None:
            continue
        cache.objects.delete(key.commit_path)  # first, so that no reader meets a commit without its objects
        if commit is not None:
            delete_group(cache.objects, commit)  # and no other attempt: one may be a builder's at this moment
    for group in found.garbage:
        delete_attempt(cache.objects, group)
    cache.objects.sweep(GRACE_S)


@dataclass(frozen=True)
class _Promised:
    """What the shards of a cache must agree with: planned rows and fingerprint of views by dataset; of teachers."""

    shards: dict[str, dict[int, ShardRows]]
    datasets: Mapping[str, DatasetSpec]
    teachers: Mapping[tuple[str, str], TeacherSpec]
    views: dict[str, str]

    @classmethod
    def by(cls, catalogue: Catalogue) -> _Promised:
        """Return what is promised of the shards that a catalogue lists."""
        plans = {name: {shard.shard: shard for shard in shards} for name, shards in catalogue.planned.items()}
        views = {name: spec.fingerprint for name, spec in catalogue.views.items()}
        return cls(plans, catalogue.datasets, catalogue.teachers, views)

    def places(self, commit: Commit) -> bool:
        """Return whether a commit has the rows that were planned for it."""
        planned = self.shards[commit.key.dataset][commit.key.shard]
        return (commit.start, commit.stop) == (planned.start, planned.stop)


def _check_plans(cache: Cache, misplaced: list[Commit]) -> None:
    """Check that at most one sealed commit of a dataset contradicts its plan; else the plan is the suspect."""
    for dataset, count in Counter(commit.key.dataset for commit in misplaced).items():
        if count > 1:  # one alone may itself be damaged
            witnesses = [commit for commit in misplaced if commit.key.dataset == dataset][:5]
            raise CorruptObject(
                f"{cache.url}/{dataset}/plan is not the plan that its shards were built by",
                found=f"{count} shards of other rows than planned, such as\n"
                + "\n".join(f"{commit.key}: rows {commit.start} to {commit.stop}" for commit in witnesses),
                do="restore the plan from a copy of the cache",
            )


def _check_promises(cache: Cache, commits: list[Commit]) -> None:
    """Check that not all shards of a promise, and more than one, say they are of another: then it is the suspect.

    Else a promise that was put in the place of another would have all that was built under it dropped.
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
                pair = (
                    weights,
                    cache.promises.weights(dataset, teacher),
                )  # a lost file is told here, not shard by shard
                said.setdefault(f"{dataset}/{teacher}/{WEIGHTS_JSON}", []).append(pair)
    for path, pairs in said.items():
        # several witnesses, of one voice, and against the file
        if len(pairs) > 1 and len(set(pairs)) == 1 and pairs[0][0] != pairs[0][1]:
            raise CorruptObject(
                f"{cache.url}/{path} is not that of its shards",
                found=f"{pairs[0][1]}  ({path})",
                expected=f"{pairs[0][0]}, as all {len(pairs)} shards say",
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


def _check(cache: Cache, key: ShardKey, promised: _Promised) -> tuple[Commit | None, str | None]:
    """Return the commit of a shard, if it can be read, and what is wrong with the shard, if anything is.

    A disk or network that fails is no fault of the shard: StorageFailure goes through.
    """
    try:
        commit = cache.unchecked_commit(key, with_table=True)
    except CorruptObject as error:
        return None, str(error)
    except IncompleteCache:
        return None, None  # dropped by a repair beside this one
    try:
        if not promised.places(commit):
            planned = promised.shards[key.dataset][key.shard]
            raise CorruptObject(
                f"{key} is not the shard that was planned",
                found=f"rows {commit.start} to {commit.stop}",
                expected=f"rows {planned.start} to {planned.stop}",
            )
        cache.promises.checked(commit)
        members = read_members(cache.objects, commit)
        _check_rows(commit)
        arrays = unpack_checked(commit, members, commit.array_names)
        if key.teacher is not None:
            _check_targets(cache, commit, of_kind(np.ndarray, commit, arrays), promised)
        else:
            _check_inputs(commit, arrays, promised.datasets[key.dataset])
    except CorruptObject as error:
        return commit, str(error)
    return commit, None


def _check_rows(commit: Commit) -> None:
    rows = commit.table["row"].to_numpy()
    if not np.array_equal(rows, np.arange(commit.start, commit.stop)):
        raise CorruptObject(f"{commit.key}: its table does not list rows {commit.start} to {commit.stop}")


def _check_inputs(commit: Commit, arrays: dict[str, np.ndarray | Ragged], spec: DatasetSpec) -> None:
    """Check that inputs are of the shape and type that their dataset promises."""
    inputs_S = arrays.get("inputs", np.empty(0, bool))  # absent: of a type that none promises
    own_length = isinstance(inputs_S, Ragged)
    flat = inputs_S.flat_T if isinstance(inputs_S, Ragged) else inputs_S
    found = (own_length, flat.dtype.name, flat.shape[1:])
    # of rows of their own length the first axis is that length, and True counts as 1
    expected = (spec.own_length, spec.input_dtype, spec.input_shape[spec.own_length :])
    if found != expected:
        raise CorruptObject(
            f"{commit.key} holds other inputs than dataset.json promises",
            found=_told(*found) if "inputs" in arrays else "no inputs",
            expected=_told(*expected),
        )


def _told(own_length: bool, dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {shape}" + " for each item of rows of their own length" * own_length


def _check_targets(cache: Cache, commit: Commit, arrays: dict[str, np.ndarray], promised: _Promised) -> None:
    """Check what digests cannot: that every value can be, is of the promised teacher, and of today's inputs."""
    assert commit.key.teacher is not None
    spec = promised.teachers[commit.key.dataset, commit.key.teacher]
    views = promised.views.get(commit.key.dataset)
    if (fault := _fault(arrays, spec, commit.uses)) is not None:
        raise CorruptObject(f"{commit.key}: {fault}")
    if commit.about.get("views", views) != views:  # targets of plain inputs name none
        raise CorruptObject(
            f"{commit.key} was made by other transforms than views.json promises",
            found=f"views fingerprint {commit.about['views']}",
            expected=f"views fingerprint {views}",
        )
    ingest = ShardKey(commit.key.dataset, None, PLAIN, commit.key.shard)
    try:
        inputs_digest = cache.commit(ingest).about.get("inputs_digest")
    except (CorruptObject, IncompleteCache):
        return  # the fault of the ingest, to be built again; whether these targets belong to it is known only then
    if inputs_digest != commit.about.get("inputs_digest"):
        raise CorruptObject(f"{commit.key} was computed from other inputs than those now in {ingest}")


def _fault(arrays: dict[str, np.ndarray], spec: TeacherSpec, uses: tuple[str, ...]) -> str | None:
    """Return what is wrong with the values of a teacher's arrays, or None."""
    soft = {name: array_S for name, array_S in arrays.items() if not name.startswith(FEATURE)}
    for name in arrays.keys() - soft.keys():
        feature = spec.features.get(name.removeprefix(FEATURE))
        if not all_finite(arrays[name], bf16=feature is not None and feature.dtype == "bf16"):
            return f"{name} holds NaN or infinity"
    return spec.encoding.fault(soft, spec.num_classes, uses)


def _garbage(cache: Cache, groups: set[str]) -> Iterator[str]:
    """Yield Zarr groups (of format 2, folders) that no readable commit names and no running build can be writing."""
    now = time.time()
    for stage in list_stages(cache.objects):
        listing = cache.objects.list(stage_folder(*stage))
        attempts = {info.path: [info] for info in listing.objects} | dict.fromkeys(listing.folders)
        for group, members in attempts.items():
            # what is not named as attempts are is not ours to delete
            if group in groups or not GROUP_NAME.fullmatch(group.rsplit("/", 1)[-1]):
                continue
            ages_s = [now - info.modified_s for info in members or cache.objects.walk(group)]
            if ages_s and min(ages_s) > GRACE_S:  # without any object it is only being begun
                yield group
