"""A cache of fewer, larger shards from one of many small ones, without any teacher; the old one stays as it is.

Shards never move within a cache, so this is another cache, of the same samples, promises and row numbers. A shard of it
is some whole shards of the old one, one after another; it is committed as any shard is, so a compaction that is stopped
goes on, and one of a cache that has grown takes the new shards up (docs/adr/0027).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from storage.cache.cache import Cache
from storage.cache.catalogue import Catalogue
from storage.cache.copies.copy import check_apart, copy_promises
from storage.cache.watcher import Watcher
from storage.errors import BadRequest, CorruptObject, IncompleteCache, StaleCache, TryAgain
from storage.format.committing import read_stored
from storage.format.rows import EXTENT_SCHEMA, Extent, RowPlan, Segment, ShardRows, create_segment, read_plan
from storage.format.shards import Commit, ShardKey, stage_folder
from storage.format.specs import OWN_LENGTH
from storage.format.stages import Stage
from storage.inputs import Stored
from storage.inputs.ragged import Ragged, digest_rows
from storage.views import PLAIN
from storage.views.check import Seen, libraries, own_size, readable_rows, shown_facts

SHARD_BYTES = 2**28  # of a larger shard, about, before it is compressed
MOST_ROWS = 2**16  # of one; a GPU is busy with far fewer
SHRUNK = 4  # how much of targets is compressed away, at most, as far as their size is guessed


@dataclass
class Compacted:
    """What came of a compaction.

    Attributes:
        shards: that were written now.
        there: that were there already.
        old: shards that the ones written now were made of.
        lacking: stage → shards that wait for rows which the old cache does not have yet.
        failed: shard, and what is wrong with those that it was to be made of.
    """

    shards: int = 0
    there: int = 0
    old: int = 0
    lacking: dict[str, int] = field(default_factory=dict)
    failed: list[tuple[ShardKey, str]] = field(default_factory=list)


def plan_compaction(
    source: Catalogue, datasets: Collection[str] | None = None, rows: int | None = None
) -> dict[str, list[list[ShardRows]]]:
    """Return which shards of a cache become one, by dataset. Reads the ledger alone.

    Args:
        source: what the cache holds.
        datasets: their names; None for all.
        rows: the most of one shard; None: as many as are about SHARD_BYTES.

    Raises:
        BadRequest: shards of a dataset cannot be joined.
    """
    found = {}
    for name in source.datasets if datasets is None else dict.fromkeys(datasets):
        spec = source.dataset(name)
        if spec.byte_ranges:
            raise _cannot(
                f"{name} is planned in bytes of text: the rows of a shard are numbered from its first byte on"
            )
        views = source.views.get(name)
        if (
            views is not None
            and views.mixes
            and any(stage[0] == name and stage[2] != PLAIN for stage in source.commits)
        ):
            raise _cannot(f"the views of {name} mix samples of one shard, and students would be shown other mixtures")
        found[name] = _groups(source.shards(name), rows or _rows_of(source, name))
    return found


def compact(
    source: Cache,
    url: str,
    watcher: Watcher,
    *,
    datasets: Collection[str] | None = None,
    rows: int | None = None,
) -> Compacted:
    """Make a cache of fewer, larger shards beside one, or go on with it.

    Args:
        source: the cache of many small shards.
        url: of the other: an empty place, or where it was begun.
        watcher: is told of each shard.
        datasets, rows: as of `plan_compaction`.

    Raises:
        BadRequest: shards of a dataset cannot be joined; the place is no place for it.
        StaleCache: what is there was not made of this cache.
        StorageFailure: a disk or store refused.
    """
    check_apart(source, url, f"cache compact {source.url} ANOTHER")
    catalogue = source.catalogue(datasets, with_plans=True)
    groups = plan_compaction(catalogue, datasets, rows)
    target = Cache.create(url)
    if target.spec.format < source.spec.format:
        raise BadRequest(
            f"{url} is of an older format than {source.url}", f"format {target.spec.format}", do="name another"
        )
    _check_origin(source, target)
    copy_promises(catalogue, target, with_plans=False)
    for name in groups:
        _extend_plan(catalogue, target, name, rows or _rows_of(catalogue, name))
    found = Compacted()
    for stage in catalogue.commits:
        _compact_stage(source, catalogue, target, stage, watcher, found)
    target.catalogue().ledger().compact()
    return found


def _check_origin(source: Cache, target: Cache) -> None:
    """Raise StaleCache if a cache that is there has shards that were not compacted from this one."""
    catalogue = target.catalogue()
    firsts = [catalogue.first_commit(name, None) for name in catalogue.datasets]
    origins = {each.about.get("compacted_from", {}).get("cache") for each in firsts if each is not None}
    if origins - {source.id}:
        raise StaleCache(
            f"{target.url} was not compacted from {source.url}",
            found="; ".join(f"shards of cache {each}" if each else "shards that were built" for each in origins),
            expected=f"shards of cache {source.id}, or none",
            do=f"cache compact {source.url} ANOTHER",
        )


def _cannot(why: str) -> BadRequest:
    return BadRequest(f"its shards cannot be joined: {why}", do="--dataset NAME compacts others")


def _rows_of(source: Catalogue, dataset: str) -> int:
    """Return how many rows are about SHARD_BYTES, of inputs as of the largest targets."""
    spec, ledger = source.dataset(dataset), source.ledger([stage for stage in source.commits if stage[0] == dataset])
    row_bytes = float(prod(spec.input_shape) * np.dtype(spec.input_dtype).itemsize)
    for stage in source.commits:
        commits = ledger.of(*stage) if stage[0] == dataset else None
        if commits is not None and (num_rows := int(commits["rows"].sum())):
            row_bytes = max(row_bytes, SHRUNK * int(commits["bytes"].sum()) / num_rows)
    return min(MOST_ROWS, max(1, int(SHARD_BYTES / max(row_bytes, 1.0))))


def _groups(shards: Sequence[ShardRows], most_rows: int) -> list[list[ShardRows]]:
    """Return neighbouring shards together, as many as have so many rows; one shard at least.

    >>> [[each.shard for each in group] for group in _groups([ShardRows(n, 4 * n, 4 * n + 4) for n in range(5)], 9)]
    [[0, 1], [2, 3], [4]]
    """
    groups: list[list[ShardRows]] = []
    for shard in shards:
        if groups and shard.stop - groups[-1][0].start <= most_rows:
            groups[-1].append(shard)
        else:
            groups.append([shard])
    return groups


def _extend_plan(source: Catalogue, target: Cache, dataset: str, most_rows: int) -> None:
    """Append to a plan what it lacks of the old one, cut where shards of that end."""
    old, new = source.plans[dataset], read_plan(target.objects, dataset)
    if (lies := _runs(old.slice(0, new.num_rows))) != _runs(new.slice(0, new.num_rows)) or new.num_rows not in {
        0,
        *(shard.stop for shard in source.shards(dataset)),
    }:
        raise StaleCache(
            f"{target.url} was not compacted from {source.url}: the plan of {dataset} is of other rows",
            found=f"{new.num_rows} rows planned otherwise",
            expected=f"{sum(rows for _, _, rows in lies)} rows as they are planned in {source.url}",
            do=f"cache compact {source.url} ANOTHER",
        )
    rest = [shard for shard in source.shards(dataset) if shard.start >= new.num_rows]
    segments = _segments(old, _groups(rest, most_rows))
    for number, segment in enumerate(segments, start=len(new.segments)):
        if not create_segment(target.objects, dataset, number, segment):
            raise TryAgain(f"somebody else compacts {source.url} to {target.url}", do="run the same command again")


def _segments(plan: RowPlan, groups: Sequence[Sequence[ShardRows]]) -> Iterator[Segment]:
    """Yield segments whose shards are these groups: all of a segment have as many rows, but a last may have fewer."""
    at = 0
    while at < len(groups):
        size, end = _num_rows(groups[at]), at + 1
        while end < len(groups) and _num_rows(groups[end]) == size:
            end += 1
        if end < len(groups) and _num_rows(groups[end]) < size:
            end += 1
        extents = plan.slice(groups[at][0].start, groups[end - 1][-1].stop)
        rows = [(each.file, each.size, each.version, each.position, each.rows) for each in extents]
        yield Segment(pl.DataFrame(rows, EXTENT_SCHEMA, orient="row"), size)
        at = end


def _num_rows(group: Sequence[ShardRows]) -> int:
    return group[-1].stop - group[0].start


def _runs(extents: Sequence[Extent]) -> list[tuple[str, int, int]]:
    """Return file, position and number of consecutive samples, however their rows were cut."""
    runs: list[tuple[str, int, int]] = []
    for extent in extents:
        if runs and (runs[-1][0], runs[-1][1] + runs[-1][2]) == (extent.file, extent.position):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + extent.rows)
        else:
            runs.append((extent.file, extent.position, extent.rows))
    return runs


def _compact_stage(
    source: Cache, catalogue: Catalogue, target: Cache, stage: Stage, watcher: Watcher, found: Compacted
) -> None:
    """Write the shards of a stage that are not there yet and of which all old ones are."""
    dataset, teacher, view = stage
    new = read_plan(target.objects, dataset).shards()
    starts, committed = catalogue.shards(dataset).starts, catalogue.committed(*stage)
    there, ready = target.committed(*stage), target.committed(dataset)  # targets after their inputs
    watcher.begin(stage_folder(*stage), len(new), done=len(there))
    for shard in new:
        first, last = np.searchsorted(starts, [shard.start, shard.stop])
        old = range(int(first), int(last))
        if shard.shard in there:
            found.there += 1
            continue
        if not committed.issuperset(old) or (teacher and shard.shard not in ready):
            name = "/".join(str(part) for part in stage if part)
            found.lacking[name] = found.lacking.get(name, 0) + 1
            continue
        key = ShardKey(dataset, teacher, view, shard.shard)
        try:
            commits = [source.commit(ShardKey(*stage, number), with_table=True) for number in old]
            _join(source, target, key, commits)
        except (CorruptObject, StaleCache, IncompleteCache) as error:
            found.failed.append((key, str(error)))
            continue
        found.shards, found.old = found.shards + 1, found.old + len(old)
        watcher.advance(1)


def _join(source: Cache, target: Cache, key: ShardKey, commits: Sequence[Commit]) -> None:
    """Write a shard of the rows of some others, one after another. Raises CorruptObject, StaleCache."""
    parts = [read_stored(source.objects, commit, commit.array_names) for commit in commits]
    arrays = {name: _concatenated([part[name] for part in parts]) for name in parts[0]}
    del parts
    table = pa.concat_tables([commit.table for commit in commits], promote_options="default")
    about = _joined([commit.about for commit in commits])
    if key.teacher is None:
        about["inputs_digest"] = digest_rows(arrays["inputs"])
    else:
        about |= _facts_of_targets(source, target, key, commits)
    numbers = [commits[0].key.shard, commits[-1].key.shard]
    about["compacted_from"] = {"cache": source.id, "shards": numbers}
    uses = dict.fromkeys(name for commit in commits for name in commit.uses if name != OWN_LENGTH)
    rows = (commits[0].start, commits[-1].stop)
    target.write_shard(key, rows=rows, arrays=arrays, table=table, about=about, uses=tuple(uses))


def _facts_of_targets(source: Cache, target: Cache, key: ShardKey, commits: Sequence[Commit]) -> dict[str, Any]:
    """Return what ties joined targets to the inputs beside them, after checking that the old ones were tied to theirs.

    Raises:
        StaleCache: targets are of other inputs, or what shows them to a teacher is of other versions here.
    """
    assert key.teacher is not None
    dataset = target.dataset(key.dataset)
    views = None if key.view == PLAIN else target.views(key.dataset)
    made_by, here = commits[0].about.get("libraries", {}), libraries(dataset, key.view)
    if any(commit.about.get("libraries", {}) != here for commit in commits):
        raise StaleCache(
            f"{source.url}: what a teacher was shown in {key} was made by other libraries than are here",
            found=f"{here}",
            expected=f"{made_by}",
            do="compact with what the cache was built with",
        )
    for commit in commits:
        old = source.commit(ShardKey(key.dataset, None, PLAIN, commit.key.shard), with_table=True)
        source.check_view(old, commit, source.read_rows(key.dataset, commit.key.shard), views)
    ingest = target.commit(ShardKey(key.dataset, None, PLAIN, key.shard), with_table=True)
    seen = Seen(
        dataset, target.read_rows(key.dataset, key.shard), own_size(dataset, target.teacher(key.dataset, key.teacher))
    )
    return {
        "inputs_digest": ingest.about["inputs_digest"],
        **shown_facts(seen, readable_rows(ingest.table), key.view, views),
    }


def _concatenated(parts: Sequence[Stored]) -> Stored:
    """Return the rows of some arrays one after another."""
    ragged = [part for part in parts if isinstance(part, Ragged)]
    if not ragged:
        return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])
    offsets = np.cumsum(np.concatenate([[0], *(part.lengths for part in ragged)]), dtype=np.int64)
    return Ragged(np.concatenate([part.flat_T for part in ragged]), offsets)


SUMMED = ("seconds", "quarantined")
SUMMED_EACH = ("answered", "remarks", "labels")  # which have numbers of their own


def _joined(abouts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the provenance of shards that become one: counts are added, and what differs is told of each.

    >>> joined = _joined([{"seconds": 1, "host": "a", "labels": [1, 2]}, {"seconds": 2, "host": "b", "labels": [0, 4]}])
    >>> joined["seconds"], joined["labels"], joined["host"]
    (3, [1, 6], 'a, b')
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for about in abouts for name in about):
        values = [about[name] for about in abouts if name in about]
        if name in SUMMED:
            found[name] = sum(values)
        elif name in SUMMED_EACH:
            if name == "remarks" or len(values) == len(abouts):  # a part of the counts would pass for all
                found[name] = _added(values)
        elif name == "finished":
            found[name] = max(values)
        elif all(value == values[0] for value in values):
            found[name] = values[0]
        elif all(isinstance(value, str) for value in values):
            found[name] = ", ".join(dict.fromkeys(values))
        elif all(isinstance(value, dict) and all(isinstance(each, str) for each in value.values()) for value in values):
            found[name] = _joined(values)
    return found


def _added(values: Sequence[Any]) -> Any:
    """Return the sums of lists, or of mappings by key."""
    if isinstance(values[0], list):
        return [sum(column) for column in zip(*values, strict=True)]
    return {key: sum(value.get(key) or 0 for value in values) for key in dict.fromkeys(k for v in values for k in v)}
