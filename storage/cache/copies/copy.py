"""The same cache elsewhere: object by object as they are, every shard's arrays before its commit.

A copy has the identity of what it was copied from, so its commits are the very same bytes and vouch for the same
digests. It may be of some datasets and teachers only. Run again, it copies what is not there yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from storage.cache import TOKENIZER_JSON, Cache, Catalogue
from storage.cache.watcher import Watcher
from storage.errors import BadRequest, CorruptObject, MissingObject, NotInCache, StaleCache
from storage.format.committing import delete_group, read_group
from storage.format.objects import Objects
from storage.format.rows import read_plan, segment_path
from storage.format.shards import COMMIT_NAME, Commit, ShardKey, stage_folder
from storage.format.specs import NOTICE_JSON, WEIGHTS_JSON
from storage.format.stages import VIEWS_JSON, Stage

AT_ONCE = 4  # shards; each is held whole
LOOK_AHEAD = 64


@dataclass
class Copied:
    """What came of a copy.

    Attributes:
        shards, bytes: that were copied now.
        there: shards that were there already.
        others: those of which another was there, which stayed.
        failed: shard and reason: damaged where they are copied from.
    """

    shards: int = 0
    bytes: int = 0
    there: int = 0
    others: list[ShardKey] = field(default_factory=list)
    failed: list[tuple[ShardKey, str]] = field(default_factory=list)


def copy_cache(
    source: Cache,
    url: str,
    watcher: Watcher,
    *,
    datasets: Collection[str] | None = None,
    teachers: Collection[str] | None = None,
) -> Copied:
    """Copy a cache, or some datasets and teachers of it, to an empty place or to a copy of it.

    Args:
        source: what is copied.
        url: where to, a folder or an object store's prefix.
        watcher: is told of each shard.
        datasets, teachers: their names; None for all.

    Raises:
        BadRequest: the place is no place for a copy.
        NotInCache: there is no dataset or teacher of a name.
        StaleCache: what is there is another cache, or promises something else.
        StorageFailure: a disk or store refused.
    """
    catalogue = source.catalogue(datasets, teachers)
    _check_names(catalogue, datasets, teachers)
    target = _open_target(source, url)
    copy_promises(catalogue, target)
    found = Copied()
    for stage in catalogue.commits:
        todo = _missing(catalogue, target, stage, found)
        folder = stage_folder(*stage)
        watcher.begin(folder, len(catalogue.commits[stage]), done=len(catalogue.commits[stage]) - len(todo))
        for key, outcome in _copy_shards(catalogue, target, stage, todo):
            if isinstance(outcome, CorruptObject):
                found.failed.append((key, str(outcome)))
            elif outcome is None:
                found.others.append(key)
            else:
                found.shards, found.bytes = found.shards + 1, found.bytes + outcome
            watcher.advance(1)
    target.catalogue().ledger().compact()  # versions of commits are of where they lie
    return found


def copy_object(source: Objects, target: Objects, path: str, do: str | None = None) -> None:
    """Create an object as it is elsewhere; if one is there already, check that it is the same. Raises StaleCache."""
    data = source.get(path)
    if not target.create(path, data) and target.get(path) != data:
        raise StaleCache(
            f"{target.url} is no copy of {source.url}: {path} differs",
            found=f"another {path}",
            expected=f"that of {source.url}",
            do=do,
        )


def copy_promises(catalogue: Catalogue, target: Cache, *, with_plans: bool = True) -> None:
    """Copy every promise and, of a plan that stays as it is, every segment, in the order in which a build writes them.

    Raises:
        StaleCache: the target promises something else.
    """
    source = catalogue.objects
    paths = [NOTICE_JSON]
    for name in catalogue.datasets:
        paths += [f"{name}/{file}" for file in (TOKENIZER_JSON, "dataset.json", VIEWS_JSON)]
        if with_plans:
            paths += [segment_path(name, number) for number in range(len(read_plan(source, name).segments))]
        for teacher in catalogue.teacher_names(name):
            paths += [f"{name}/{teacher}/{file}" for file in ("teacher.json", WEIGHTS_JSON)]
    optional = {NOTICE_JSON, TOKENIZER_JSON, VIEWS_JSON, WEIGHTS_JSON}
    for path in paths:
        try:
            copy_object(source, target.objects, path, f"cache diff {source.url} {target.url}")
        except MissingObject:
            if path.rsplit("/", 1)[-1] not in optional:
                raise


def check_apart(source: Cache, url: str, do: str) -> None:
    """Raise BadRequest if one cache would lie inside the other, or is the other."""
    if url == source.url:
        raise BadRequest("that is the very same cache", found=url, expected="another folder", do=do)
    if f"{url}/".startswith(f"{source.url}/") or f"{source.url}/".startswith(f"{url}/"):
        found = f"{source.url} and {url}"
        raise BadRequest("one cache would lie inside the other", found=found, expected="another folder", do=do)


def _check_names(catalogue: Catalogue, datasets: Collection[str] | None, teachers: Collection[str] | None) -> None:
    """Raise NotInCache if a name that was asked for is of nothing."""
    for dataset in datasets or ():
        catalogue.dataset(dataset)
    there = {teacher for _, teacher in catalogue.teachers}
    if absent := sorted(set(teachers or ()) - there):
        raise NotInCache(
            f"{catalogue.url} has no teacher {', '.join(absent)}",
            found=", ".join(sorted(there)) or "no teachers of these names",
            do="cache info CACHE lists them",
        )


def _open_target(source: Cache, url: str) -> Cache:
    check_apart(source, url, f"cache copy {source.url} ANOTHER")
    target = Cache.find(url)
    if target is None:
        target = Cache.create(url, of=source.spec)
    if target.id != source.id:
        raise StaleCache(
            f"{url} is another cache",
            found=f"cache {target.id}",
            expected=f"cache {source.id}, of {source.url}, or an empty folder",
            do=f"cache copy {source.url} ANOTHER",
        )
    return target


def _missing(catalogue: Catalogue, target: Cache, stage: Stage, found: Copied) -> Sequence[int]:
    """Return the shards of a stage that the target lacks; note those that it has, and those that it has otherwise."""
    numbers = np.array(list(catalogue.commits[stage]), np.int64)
    there = _commit_sizes(target.objects, stage)
    if there:
        here = _commit_sizes(catalogue.objects, stage)
        others = [shard for shard in numbers.tolist() if shard in there and there[shard] != here.get(shard)]
        found.others += [ShardKey(*stage, shard) for shard in others]
        found.there += len(there.keys() & set(numbers.tolist())) - len(others)
    return [shard for shard in numbers.tolist() if shard not in there]


def _commit_sizes(objects: Objects, stage: Stage) -> dict[int, int]:
    """Return the size of every commit of a stage: of two attempts at a shard they differ, nearly always."""
    folder = stage_folder(*stage)
    names = ((info.path.removeprefix(f"{folder}/"), info.size_bytes) for info in objects.walk(folder))
    return {int(name.removesuffix(".parquet")): size for name, size in names if COMMIT_NAME.fullmatch(name)}


def _copy_shards(
    catalogue: Catalogue, target: Cache, stage: Stage, todo: Sequence[int]
) -> Iterator[tuple[ShardKey, int | CorruptObject | None]]:
    """Copy shards, a few at once; yield what `_copy_shard` returns of each, or what is wrong with it at its source."""

    def copy(shard: int) -> tuple[ShardKey, int | CorruptObject | None]:
        key = ShardKey(*stage, shard)
        try:
            return key, _copy_shard(catalogue, target, key)
        except CorruptObject as error:
            return key, error

    left = iter(todo)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while some := list(islice(left, LOOK_AHEAD)):  # so that a signal waits for few
            yield from pool.map(copy, some)


def _copy_shard(catalogue: Catalogue, target: Cache, key: ShardKey) -> int | None:
    """Copy a shard under the attempt that it has; return its bytes, or None if another attempt was committed meanwhile.

    Raises:
        CorruptObject: it is not whole where it comes from.
        StorageFailure: a disk or store refused; the copy is not visible, or it is whole.
    """
    data = catalogue.objects.get(key.commit_path)
    commit = catalogue.promises.checked(Commit.from_parquet(data, key.commit_path))
    for path, part in read_group(catalogue.objects, commit).items():
        target.objects.put(commit.group + path, bytes(part))
    # last; where another copy was first, its commit is the same and names the same group
    if not target.objects.create(key.commit_path, data) and target.objects.get(key.commit_path) != data:
        delete_group(target.objects, commit)
        return None
    return commit.size_bytes + len(data)
