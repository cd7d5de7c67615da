"""A source in ranges compared with what a cache holds: by digests of the ranges, and only then by their samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from storage.cache import Catalogue
from storage.datasets import Source
from storage.errors import StaleCache
from storage.format.rows import Extent, RowPlan
from storage.format.shards import Commit, ShardKey, read_commits
from storage.views import PLAIN
from teacher_cache.building.sources.afresh import afresh
from teacher_cache.work.ingest import digest_extents, read_extent

READ_AT_ONCE = 256  # commits


def compare_ranges(
    catalogue: Catalogue, source: Source, recorded: RowPlan, touched: Sequence[str], job: str
) -> dict[int, str]:
    """Return the shards of touched files whose unreadable samples are mended, and nothing else in them is changed.

    Raises:
        StaleCache: what a range held changed.
    """
    mended, changed, goes_on = {}, [], []
    for commit, extents in _ingested(catalogue, source, recorded, set(touched)):
        was = commit.about["range_digest"]
        if was in (digest_extents(source, extents), digest_extents(source, extents, open_ended=True)):
            continue
        if commit.about["quarantined"] and _is_mended(source, commit, extents):
            mended[commit.key.shard] = commit.attempt
        else:
            changed.append(extents[0])
            goes_on += [extent.file for extent in extents if extent.last and extent.file in touched]
    if changed:
        places = ", ".join(f"{extent.file} from byte {extent.position} on" for extent in changed[:3])
        told = f"{len(changed)} shard{'s' * (len(changed) != 1)} with other content: {places}"
        if len(changed) == 1 and goes_on:
            told += f"\nwhere {goes_on[0]} ended when it was read: perhaps a last line without a line end goes on there"
        raise changed_under(catalogue, source, told, job)
    return mended


def changed_under(catalogue: Catalogue, source: Source, found: str, job: str) -> StaleCache:
    """Return the error of samples that are not what they were."""
    return StaleCache(
        f"dataset {source.name} has changed under the cache {catalogue.url}",
        found=found,
        expected="recorded samples as they were, and perhaps new ones",
        do=afresh(catalogue, source.name, job),
    )


def _ingested(
    catalogue: Catalogue, source: Source, recorded: RowPlan, touched: set[str]
) -> Iterator[tuple[Commit, list[Extent]]]:
    """Yield the commit of each ingested shard that has something of a touched file, with its table, and its extents."""
    committed = catalogue.committed(source.name)
    shards = []
    for shard, start, stop in recorded.shards():
        extents = recorded.slice(start, stop) if shard in committed else []
        if any(extent.file in touched for extent in extents):
            shards.append((ShardKey(source.name, None, PLAIN, shard).commit_path, extents))
    for first in range(0, len(shards), READ_AT_ONCE):
        batch = dict(shards[first : first + READ_AT_ONCE])
        for commit in read_commits(catalogue.objects, list(batch)):
            yield catalogue.promises.checked(commit), batch[commit.key.commit_path]


def _is_mended(source: Source, commit: Commit, extents: Sequence[Extent]) -> bool:
    """Return whether a shard has the samples that it had, but for those that could not be read."""
    samples = source.rows_of(sample for extent in extents for sample in read_extent(source, extent))
    now = [sample.digests(3)["payload_digest"] for sample in samples]
    was = commit.table["payload_digest"].to_pylist()
    return len(now) == len(was) and all(then in ("", found) for then, found in zip(was, now, strict=True))
