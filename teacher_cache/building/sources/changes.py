"""Recorded rows whose source is not what it was: changed, moved, gone, or mended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from storage.cache import Catalogue
from storage.datasets import Source
from storage.errors import StaleCache
from storage.format.rows import RowPlan
from storage.format.shards import Commit
from teacher_cache.building.sources.afresh import afresh
from teacher_cache.building.sources.ranges import changed_under

CHANGES = {  # by the column of an ingest's table that tells it
    "payload_digest": "other content",
    "label_digest": "another label",
    "digest": "other content or another label",  # of format 2
}


def compare_rows(
    catalogue: Catalogue, source: Source, recorded: RowPlan, touched: Sequence[str], job: str
) -> dict[int, str]:
    """Compare the samples of touched files with what was ingested; return the shards whose unreadable ones are mended.

    Raises:
        StaleCache: a sample's content or label changed.
    """
    commits = catalogue.read_commits(source.name)
    was = {row: recorded for commit in commits for row, recorded in _recorded(commit)}
    by_id = {sample_id: (digests, readable) for sample_id, digests, readable in was.values()}
    moved: list[str] = []
    changed: dict[str, list[str]] = {}
    mended_rows, row = [], 0
    for extent in recorded.slice(0, recorded.num_rows):
        if extent.file in touched:
            for i, sample in enumerate(source.read(extent.file, extent.position, extent.rows), start=row):
                if i not in was:
                    continue  # not ingested yet, nothing to compare
                was_here, digests, readable = was[i]
                elsewhere = sample.sample_id != was_here
                if elsewhere and sample.sample_id not in by_id:
                    changed.setdefault("another id", []).append(sample.sample_id)
                    continue
                if elsewhere:  # its own content then, not that of the row which was here
                    moved.append(sample.sample_id)
                    digests, readable = by_id[sample.sample_id]
                now = sample.digests(3 if "payload_digest" in digests else 2)
                for what in (name for name in digests if digests[name] != now[name]):
                    if readable:
                        changed.setdefault(CHANGES[what], []).append(sample.sample_id)
                    elif what != "label_digest":  # another label does not make a payload readable
                        mended_rows.append(i)  # a sample that could not be read may change: that is how it is mended
        row += extent.rows
    if moved and not changed:
        raise StaleCache(
            f"the rows of dataset {source.name} lie in another order than when they were ingested",
            found=f"{len(moved):,} of them elsewhere, none with other content: {', '.join(moved[:5])}",
            expected="each row where it was, and new ones behind the last: shards are rows of the file",
            do=f"write the file in its old order; or\n{afresh(catalogue, source.name, job)}",
        )
    if moved:
        changed["another place"] = moved
    if changed:
        told = "\n".join(f"{len(ids)} samples with {what}: {', '.join(ids[:5])}" for what, ids in changed.items())
        raise changed_under(catalogue, source, told, job)
    return {c.key.shard: c.attempt for c in commits if any(c.start <= row < c.stop for row in mended_rows)}


def _recorded(commit: Commit) -> Iterator[tuple[int, tuple[str, dict[str, str], bool]]]:
    """Yield each row of an ingest, with its id, its digests by name of column, and whether it could be read."""
    names = [name for name in CHANGES if name in commit.table.column_names]
    columns = commit.table.select(["row", "sample_id", "error", *names]).to_pydict().values()
    for row, sample_id, error, *digests in zip(*columns, strict=True):
        yield row, (sample_id, dict(zip(names, digests, strict=True)), error is None)


def never_read(catalogue: Catalogue, dataset: str, recorded: RowPlan, files: set[str]) -> dict[str, list[int]]:
    """Return those of some files of which no sample could be read when it was ingested, with their rows."""
    unread = {
        row for commit in catalogue.read_commits(dataset) for row, (_, _, readable) in _recorded(commit) if not readable
    }
    rows_of: dict[str, list[int]] = {}
    row = 0
    for extent in recorded.slice(0, recorded.num_rows):
        if extent.file in files:
            rows_of.setdefault(extent.file, []).extend(range(row, row + extent.rows))
        row += extent.rows
    return {file: rows for file, rows in rows_of.items() if rows and unread.issuperset(rows)}


def lost(catalogue: Catalogue, dataset: str, gone: Sequence[str], job: str) -> StaleCache:
    """Return the refusal of a source that has lost samples that a cache holds, or has planned to."""
    return StaleCache(
        f"dataset {dataset} has lost samples that {job}'s cache holds",
        found=f"{len(gone)} files gone or shorter: {', '.join(gone[:5])}",
        expected="every recorded sample, and perhaps new ones",
        do=f"put them back; or\n{afresh(catalogue, dataset, job)}",
    )


def check_mended(
    dataset: str, recorded: RowPlan, mended: Mapping[int, str], withdrawn: Mapping[str, Sequence[int]]
) -> None:
    """Raise StaleCache if a shard that is to be built again holds a row whose file is gone, which has no name more."""
    gone = {row: file for file, rows in withdrawn.items() for row in rows}
    for shard, start, stop in recorded.shards() if mended and gone else ():
        if shard in mended and (files := sorted({gone[row] for row in range(start, stop) if row in gone})):
            raise StaleCache(
                f"dataset {dataset} has mended samples in a shard of others whose files are gone",
                found=f"gone: {', '.join(files[:5])}",
                expected="every file of a shard that is built again, readable or not",
                do="put them back as they were, build, and delete them then",
            )
