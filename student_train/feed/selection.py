"""Which rows of a cache are fed, decided from its tables before an array is read.

N fed rows, numbered by position from 0 in dataset order; S shards that hold one or more of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.cache import Cache
from storage.digests import digest, sample_keys
from storage.errors import BadRequest, IncompleteCache, NotInCache
from storage.views import PLAIN
from student_train.feed.batches import Needs
from student_train.feed.views import EpochViews

NO_CLASS = -1  # of a row without a label, or whose teacher is not there

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Rows of one dataset.

    Attributes:
        dataset: its name in the cache.
        shards_S: numbers of the shards that hold fed rows, ascending.
        rows: for each of them, the fed rows, counted from the shard's first; ascending.
        shard_sizes_S: how many each of them has.
        labels_N: class, or NO_CLASS.
        tops_N: the top class of the teacher to agree with, or NO_CLASS; None without such a teacher.
        fingerprint: of which samples these are, and of their content.
        keys_N, splits_N: of the samples; what is random in a view is a function of them.
        views: which view each epoch shows; None: plain inputs.
    """

    dataset: str
    shards_S: tuple[int, ...]
    rows: tuple[Integers, ...]
    shard_sizes_S: Integers
    labels_N: Integers
    tops_N: Integers | None
    fingerprint: str
    keys_N: Integers
    splits_N: NDArray[np.str_]
    views: EpochViews | None = None

    @property
    def view_names(self) -> tuple[str, ...]:
        """Return the views of which targets are read."""
        return (PLAIN,) if self.views is None else self.views.names

    @property
    def num_rows(self) -> int:
        """Return N."""
        return len(self.labels_N)


def select_rows(
    cache: Cache,
    rows: str,
    needs: Needs,
    *,
    allow_partial: bool = False,
    agree_with: str | None = None,
    views: EpochViews | None = None,
) -> Selection:
    """Return the readable rows of `rows` for which the cache holds all that `needs` names.

    Args:
        cache: where they are.
        rows: "<dataset>" or "<dataset>/<split>".
        needs: labels, and which teachers.
        allow_partial: leave out rows whose shards are missing, instead of refusing.
        agree_with: a teacher whose top class is wanted for each row, of its plain inputs.
        views: of which soft targets are wanted; None: of the plain inputs.

    Raises:
        NotInCache: no such dataset, or no row of this split.
        IncompleteCache: shards are missing, named, and not `allow_partial`; or all of them are.
        BadRequest: labels are needed and some rows have none.
    """
    dataset, _, split = rows.partition("/")
    cache.dataset(dataset)
    starts = {shard.shard: shard.start for shard in cache.shards(dataset)}
    ingested = cache.committed(dataset)
    absent = {"ingest": starts.keys() - ingested}
    if not ingested or (absent["ingest"] and not allow_partial):
        raise _incomplete(cache, dataset, absent, len(starts), views)

    samples = cache.samples(dataset, [agree_with] if agree_with else [])
    if split:
        splits = samples["split"].value_counts().iter_rows()
        samples = samples.filter(pl.col("split") == split)
        if samples.is_empty():
            found = ", ".join(f"{count} of {name!r}" for name, count in splits)
            raise NotInCache(f"{cache.url}: {dataset} has no rows of split {split!r}", found=found or "no rows at all")
    wanted = set(samples["shard"].unique().to_list())
    names = (PLAIN,) if views is None else views.names
    stages = {(teacher, view) for teacher in needs.teachers for view in names}
    for teacher, view in sorted(stages | ({(agree_with, PLAIN)} if agree_with else set())):
        absent[_stage(teacher, view)] = wanted - cache.committed(dataset, teacher, view)
    if any(absent.values()):
        if not allow_partial:
            raise _incomplete(cache, dataset, absent, len(starts), views)
        for stage in stages:
            samples = samples.filter(~pl.col("shard").is_in(absent[_stage(*stage)]))
    if samples.is_empty():
        raise IncompleteCache(
            f"{cache.url}: no row of {rows} has all that the objective needs yet",
            found="\n".join(f"{stage}: no shard {ranges(shards)}" for stage, shards in absent.items() if shards),
            do=_finish(cache, dataset, absent, views),
        )
    of_tokens = cache.dataset(dataset).vocabulary is not None  # each position has its label, in an array
    if needs.labels and not of_tokens and (unlabelled := samples["label"].null_count()):
        raise BadRequest(
            f"an objective needs labels, and {unlabelled} of {len(samples)} rows of {rows} have none",
            found=", ".join(samples.filter(pl.col("label").is_null())["sample_id"].head(4).to_list()),
            do='drop the "labels" term, or label the dataset',
        )
    return _selection(dataset, samples, starts, f"{agree_with}_top" if agree_with else None, views)


def _stage(teacher: str, view: str) -> str:
    return f"teacher {teacher}" if view == PLAIN else f"teacher {teacher}, {view}"


def _selection(
    dataset: str, samples: pl.DataFrame, starts: Mapping[int, int], top: str | None, views: EpochViews | None
) -> Selection:
    shard_N = samples["shard"].to_numpy()
    row_N = samples["row"].to_numpy()
    shards_S, sizes_S = np.unique(shard_N, return_counts=True)
    parts = np.split(row_N, np.cumsum(sizes_S)[:-1])
    content = row_N.astype("<i8").tobytes() + "".join(samples["digest"].to_list()).encode()
    return Selection(
        dataset=dataset,
        shards_S=tuple(shards_S.tolist()),
        rows=tuple(part - starts[shard] for shard, part in zip(shards_S.tolist(), parts, strict=True)),
        shard_sizes_S=sizes_S.astype(np.int64),
        labels_N=_classes(samples["label"]),
        tops_N=None if top is None else _classes(samples[top]),
        fingerprint=digest(content),
        keys_N=sample_keys(samples["sample_id"]),
        splits_N=samples["split"].to_numpy().astype(str),
        views=views,
    )


def _classes(column: pl.Series) -> Integers:
    return column.cast(pl.Int64).fill_null(NO_CLASS).to_numpy().astype(np.int64)


def _incomplete(
    cache: Cache, dataset: str, absent: Mapping[str, Iterable[int]], num_shards: int, views: EpochViews | None
) -> IncompleteCache:
    missing = {stage: shards for stage, shards in absent.items() if shards}
    return IncompleteCache(
        f"{cache.url}: {dataset} is only half built",
        found="\n".join(f"{stage}: no shard {ranges(shards)}" for stage, shards in missing.items()) or "no shards",
        expected=f"all {num_shards} shards",
        do=f"{_finish(cache, dataset, absent, views)}; or allow_partial = true, to train on the rows that are there",
    )


def _finish(cache: Cache, dataset: str, absent: Mapping[str, Iterable[int]], views: EpochViews | None) -> str:
    """Return the command that builds what is absent, with what its job must ask for."""
    option = ""
    if views is not None:
        option = f" with [views] count = {views.count} or more,"
    elif any(absent[stage] for stage in absent if stage != "ingest") and cache.views(dataset) is not None:
        option = " with [views] plain = true,"
    return f"cache build JOB.toml    #{option} finishes it"


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers as text, runs joined: "0, 3 to 7"."""
    runs = []
    for _, group in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}")
    return ", ".join(runs)
