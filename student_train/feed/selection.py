"""Which rows of a cache are fed, decided from its tables before an array is read.

N fed rows, numbered by position from 0 in dataset order, of several datasets one after another; S shards that hold one
or more of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.cache import Catalogue, Samples
from storage.cache.labels import classes_of, has_label, labels_of
from storage.digests import digest, fingerprint, sample_keys
from storage.errors import BadRequest, IncompleteCache, NotInCache
from storage.format.rows import ranges
from storage.format.shards import DIGEST_COLUMNS, ShardKey
from storage.format.specs import DatasetSpec
from storage.inputs.encoded import OwnSize, own_shape
from storage.tasks import task_of
from storage.tasks.base import LABELLED, TARGET
from storage.views import PLAIN
from student_train.feed.batches import Needs
from student_train.feed.order.views import EpochViews
from student_train.options.by_dataset import teacher_of

NO_CLASS = -1  # of a row without a label, or whose teacher is not there

Integers = NDArray[np.int64]


class Part(NamedTuple):
    """The rows of one dataset, which lie together.

    Attributes:
        dataset: its name in the cache.
        shards: which of the S shards are its own.
        rows: which of the N rows.
    """

    dataset: str
    shards: range
    rows: range


@dataclass(frozen=True)
class Selection:
    """Rows of one dataset, or of several that agree in what a row is and what is asked of it.

    Attributes:
        catalogue: what the cache holds, as it was when they were selected.
        parts: its datasets, in the order of their rows.
        shards_S: numbers of the shards that hold fed rows, ascending in each dataset.
        rows: for each of them, the fed rows, counted from the shard's first; ascending.
        shard_sizes_S: how many each of them has.
        labels_N: class, or NO_CLASS; of numbers float32 (N, T), NaN where there are none.
        tops_N: the top class of the teacher to agree with, or NO_CLASS; None without such a teacher.
        fingerprint: of which samples these are, and of their content.
        keys_N, splits_N: of the samples; what is random in a view is a function of them.
        views: which view each epoch shows; None: plain inputs.
        lengths_N: items of each row, where each has a length of its own; None: all are alike.
        labelled_N: labelled sites of each row, where it has many and a teacher has counted them; None: nobody has.
        taken: of a mixture, how many rows of each part an epoch takes, N in all; empty: it takes each row once.
        own: at which size pictures that are kept encoded are decoded, where it is another than the dataset's.
    """

    catalogue: Catalogue
    parts: tuple[Part, ...]
    shards_S: tuple[int, ...]
    rows: tuple[Integers, ...]
    shard_sizes_S: Integers
    labels_N: Integers | NDArray[np.float32]
    tops_N: Integers | None
    fingerprint: str
    keys_N: Integers
    splits_N: NDArray[np.str_]
    views: EpochViews | None = None
    lengths_N: Integers | None = None
    labelled_N: Integers | None = None
    taken: tuple[int, ...] = ()
    own: OwnSize | None = None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Return the shape of a row's inputs as they are fed."""
        return own_shape(self.spec.input_shape, self.own)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Return the names of its datasets."""
        return tuple(part.dataset for part in self.parts)

    @property
    def spec(self) -> DatasetSpec:
        """Return what all of its datasets promise alike of a row: inputs, task, classes."""
        return self.catalogue.dataset(self.parts[0].dataset)

    def apart(self) -> list[Selection]:
        """Return the rows of each of its datasets by themselves."""
        if len(self.parts) == 1:
            return [self]
        each = []
        for dataset, shards, rows in self.parts:
            of_shards, of_rows = slice(shards.start, shards.stop), slice(rows.start, rows.stop)
            each.append(
                replace(
                    self,
                    parts=(Part(dataset, range(len(shards)), range(len(rows))),),
                    shards_S=self.shards_S[of_shards],
                    rows=self.rows[of_shards],
                    shard_sizes_S=self.shard_sizes_S[of_shards],
                    labels_N=self.labels_N[of_rows],
                    tops_N=None if self.tops_N is None else self.tops_N[of_rows],
                    fingerprint=fingerprint([dataset, self.fingerprint]),
                    keys_N=self.keys_N[of_rows],
                    splits_N=self.splits_N[of_rows],
                    lengths_N=None if self.lengths_N is None else self.lengths_N[of_rows],
                    labelled_N=None if self.labelled_N is None else self.labelled_N[of_rows],
                    taken=(),
                )
            )
        return each

    def at_labels(self, teacher: str) -> bool:
        """Return whether what a teacher said, as a term names it, is of labelled sites alone, in any dataset."""
        named = [(dataset, teacher_of(teacher, dataset) or teacher) for dataset in self.datasets]
        specs = [self.catalogue.teachers.get(pair) for pair in named]
        return any(spec is not None and spec.labelled_positions for spec in specs)

    def key(self, index: int) -> ShardKey:
        """Return the key of the ingest of shard `shards_S[index]`."""
        of = next(part.dataset for part in self.parts if index in part.shards)
        return ShardKey(of, None, PLAIN, self.shards_S[index])

    @property
    def view_names(self) -> tuple[str, ...]:
        """Return the views of which targets are read."""
        return (PLAIN,) if self.views is None else self.views.names

    @property
    def labelled_mask(self) -> NDArray[np.bool_]:
        """Return which rows have a label, (N,)."""
        return has_label(self.spec, self.labels_N)

    @property
    def num_rows(self) -> int:
        """Return N."""
        return len(self.labels_N)

    def lengths_of(self, shards: Iterable[int]) -> Integers | None:
        """Return the lengths of the fed rows of some of the S shards, one shard after another."""
        return self._of_shards(self.lengths_N, shards)

    def labelled_of(self, shards: Iterable[int]) -> Integers | None:
        """Return how many labelled sites the fed rows of some of the S shards have, one shard after another."""
        return self._of_shards(self.labelled_N, shards)

    def _of_shards(self, counts_N: Integers | None, shards: Iterable[int]) -> Integers | None:
        if counts_N is None:
            return None
        stops_S = np.cumsum(self.shard_sizes_S)
        parts = [counts_N[stops_S[shard] - self.shard_sizes_S[shard] : stops_S[shard]] for shard in shards]
        return np.concatenate(parts)


def select_rows(
    samples: Samples,
    rows: str,
    needs: Needs,
    *,
    allow_partial: bool = False,
    agree_with: str | None = None,
    views: EpochViews | None = None,
) -> Selection:
    """Return the readable rows of `rows` for which the cache holds all that `needs` names.

    Args:
        samples: of the catalogue that lists them.
        rows: "<dataset>" or "<dataset>/<split>".
        needs: labels, and which teachers, the dataset's own among those that are named together.
        allow_partial: leave out rows whose shards are missing, instead of refusing.
        agree_with: a teacher whose top class is wanted for each row, of its plain inputs.
        views: of which soft targets are wanted; None: of the plain inputs.

    Raises:
        NotInCache: no such dataset, or no row of this split.
        IncompleteCache: shards are missing, named, and not `allow_partial`; or all of them are.
        BadRequest: labels are needed and some rows have none.
        TryAgain: shards were dropped since the catalogue was read.
    """
    catalogue, dataset = samples.catalogue, rows.partition("/")[0]
    needs = needs.within(dataset)
    absent = _Absent(catalogue, dataset, views)
    absent.look("ingest", (shard.shard for shard in catalogue.shards(dataset)), catalogue.committed(dataset))
    # of no rows at all none can be left out
    if not catalogue.committed(dataset) or (absent.any and not allow_partial):
        raise absent.half_built()
    # any teacher has counted the labelled sites of its rows, where a row has many
    many = task_of(catalogue.dataset(dataset)).label_array is not None
    counting = [name for name in catalogue.teacher_names(dataset) if many and catalogue.view_names(dataset, name)]
    told = sorted({*counting, *([agree_with] if agree_with else [])})
    wanted = _of_split(catalogue, rows, samples.of(dataset, told, _columns(agree_with, counting)))
    stages = {(teacher, view) for teacher in needs.teachers for view in ((PLAIN,) if views is None else views.names)}
    for teacher, view in sorted(stages | ({(agree_with, PLAIN)} if agree_with else set())):
        absent.look(_stage(teacher, view), wanted["shard"].unique(), catalogue.committed(dataset, teacher, view))
    if absent.any and not allow_partial:
        raise absent.half_built()
    # not those of the teacher to agree with: without it a row is trained on all the same
    gone = {shard for stage in stages for shard in absent.shards[_stage(*stage)]}
    found = wanted.filter(~pl.col("shard").is_in(gone))
    if found.is_empty():
        raise absent.nothing_left(rows)
    if needs.labels and task_of(catalogue.dataset(dataset)).label_array is None:  # else a site may have none
        _check_labelled(catalogue.dataset(dataset), rows, found)
    return _selection(catalogue, dataset, found, agree_with, views)


def join_selections(selections: Sequence[Selection]) -> Selection:
    """Return the rows of several datasets as one selection, one dataset's after another's.

    Args:
        selections: of plain inputs, one at least; of one catalogue, and of datasets that agree in what a row is.
    """
    first = selections[0]
    if len(selections) == 1:
        return first
    assert all(selection.views is None for selection in selections)
    parts, num_shards, num_rows = [], 0, 0
    for selection in selections:
        shards, rows = len(selection.shards_S), selection.num_rows
        parts.append(
            Part(selection.datasets[0], range(num_shards, num_shards + shards), range(num_rows, num_rows + rows))
        )
        num_shards, num_rows = num_shards + shards, num_rows + rows
    tops = [selection.tops_N for selection in selections]
    lengths = [selection.lengths_N for selection in selections]
    labelled = [selection.labelled_N for selection in selections]
    unknown = [np.full(selection.num_rows, NO_CLASS, np.int64) for selection in selections]
    return Selection(
        catalogue=first.catalogue,
        parts=tuple(parts),
        shards_S=tuple(shard for selection in selections for shard in selection.shards_S),
        rows=tuple(rows for selection in selections for rows in selection.rows),
        shard_sizes_S=np.concatenate([selection.shard_sizes_S for selection in selections]),
        labels_N=np.concatenate([selection.labels_N for selection in selections]),
        # of a dataset whose teacher is not there nothing is known
        tops_N=None
        if all(each is None for each in tops)
        else np.concatenate([none if each is None else each for each, none in zip(tops, unknown, strict=True)]),
        fingerprint=fingerprint([[selection.datasets[0], selection.fingerprint] for selection in selections]),
        keys_N=np.concatenate([selection.keys_N for selection in selections]),
        splits_N=np.concatenate([selection.splits_N for selection in selections]),
        lengths_N=None if lengths[0] is None else np.concatenate([each for each in lengths if each is not None]),
        labelled_N=None
        if any(each is None for each in labelled)
        else np.concatenate([each for each in labelled if each is not None]),
    )


def _columns(agree_with: str | None, counting: Sequence[str]) -> list[str]:
    """Return the columns of samples that decide which rows are fed, and how.

    Args:
        agree_with: a teacher whose top class is wanted.
        counting: teachers that have counted labelled sites.
    """
    of_teachers = [*([f"{agree_with}_top"] if agree_with else []), *(f"{name}_{LABELLED}" for name in counting)]
    return ["sample_id", "label", TARGET, "split", "length", *DIGEST_COLUMNS, *of_teachers]


def _of_split(catalogue: Catalogue, rows: str, samples: pl.DataFrame) -> pl.DataFrame:
    """Return those of a dataset's samples that `rows` names. Raises NotInCache: there are none."""
    dataset, _, split = rows.partition("/")
    if not split:
        return samples
    of_split = samples.filter(pl.col("split") == split)
    if of_split.is_empty():
        found = ", ".join(f"{count} of {name!r}" for name, count in samples["split"].value_counts().iter_rows())
        raise NotInCache(
            f"{catalogue.url}: {dataset} has no rows of split {split!r}",
            found=found or "no rows at all",
            do=f"train and evaluate on other rows; or choose another `validation` of {dataset}, of held rows, "
            "in the cache job, and build with --as NAME",
        )
    return of_split


def _check_labelled(dataset: DatasetSpec, rows: str, samples: pl.DataFrame) -> None:
    """Raise BadRequest if a sample has no label."""
    column = TARGET if task_of(dataset).numbers else "label"
    if unlabelled := samples[column].null_count():
        raise BadRequest(
            f"an objective needs labels, and {unlabelled} of {len(samples)} rows of {rows} have none",
            found=", ".join(samples.filter(pl.col(column).is_null())["sample_id"].head(4).to_list()),
            do="leave those rows out of the table; or learn from a teacher's numbers alone"
            if column == TARGET
            else 'where_labelled = true in the "labels" term, to leave these out there; drop it; or label them',
        )


def _stage(teacher: str, view: str) -> str:
    return f"teacher {teacher}" if view == PLAIN else f"teacher {teacher}, {view}"


def _selection(
    catalogue: Catalogue, dataset: str, samples: pl.DataFrame, agree_with: str | None, views: EpochViews | None
) -> Selection:
    """Return some samples of a dataset, in its order, as rows of their shards."""
    starts_S = catalogue.shards(dataset).starts
    shard_N = samples["shard"].to_numpy()
    row_N = samples["row"].to_numpy()
    shards_S, sizes_S = np.unique(shard_N, return_counts=True)
    parts = np.split(row_N, np.cumsum(sizes_S)[:-1])  # in dataset order, so that a shard's are together
    digests = samples.select(name for name in DIGEST_COLUMNS if name in samples.columns)
    digest_N = digests.select(pl.concat_str(pl.all(), ignore_nulls=True)).to_series()
    # little-endian: a fingerprint is of no machine
    content = row_N.astype("<i8").tobytes() + "".join(digest_N.to_list()).encode()
    return Selection(
        catalogue=catalogue,
        parts=(Part(dataset, range(len(shards_S)), range(len(samples))),),
        shards_S=tuple(shards_S.tolist()),
        rows=tuple(part - start for start, part in zip(starts_S[shards_S], parts, strict=True)),
        shard_sizes_S=sizes_S.astype(np.int64),
        labels_N=labels_of(catalogue.dataset(dataset), samples),
        tops_N=None if agree_with is None else classes_of(samples[f"{agree_with}_top"]),
        fingerprint=digest(content),
        keys_N=sample_keys(samples["sample_id"]),
        splits_N=samples["split"].to_numpy().astype(str),
        views=views,
        lengths_N=samples["length"].to_numpy().astype(np.int64) if catalogue.dataset(dataset).own_length else None,
        labelled_N=_labelled(catalogue, dataset, samples),
    )


def _labelled(catalogue: Catalogue, dataset: str, samples: pl.DataFrame) -> Integers | None:
    """Return how many labelled sites each row has, 0 of one that nobody has answered; None: nobody has counted."""
    names = catalogue.teacher_names(dataset)
    # those that have answered a row say the same of it
    columns = [f"{name}_{LABELLED}" for name in names if f"{name}_{LABELLED}" in samples.columns]
    if not columns:
        return None
    found = samples.select(pl.coalesce(columns).cast(pl.Int64)).to_series()
    sure = any(catalogue.teacher(dataset, name).labelled_positions for name in names)
    return found.fill_null(0).to_numpy() if sure or not found.null_count() else None


class _Absent:
    """Which shards of a dataset a selection would need and does not find, by what they are of, and how to say so."""

    def __init__(self, catalogue: Catalogue, dataset: str, views: EpochViews | None):
        self._catalogue, self._dataset, self._views = catalogue, dataset, views
        self.shards: dict[str, set[int]] = {}

    def look(self, what: str, wanted: Iterable[int], committed: set[int]) -> None:
        """Take down which of the wanted shards are not committed."""
        self.shards[what] = set(wanted) - committed

    @property
    def any(self) -> bool:
        """Whether anything is missing."""
        return any(self.shards.values())

    def half_built(self) -> IncompleteCache:
        """Return the error of rows that are not all there."""
        return IncompleteCache(
            f"{self._catalogue.url}: {self._dataset} is only half built",
            found=self._told() or "no shards",
            expected=f"all {len(self._catalogue.shards(self._dataset))} shards",
            do=f"{self._finish()}; or allow_partial = true, to train on the rows that are there",
        )

    def nothing_left(self, rows: str) -> IncompleteCache:
        """Return the error of rows none of which has all that it needs."""
        return IncompleteCache(
            f"{self._catalogue.url}: no row of {rows} has all that the objective needs yet",
            found=self._told(),
            do=self._finish(),
        )

    def _told(self) -> str:
        return "\n".join(f"{what}: no shard {ranges(shards)}" for what, shards in self.shards.items() if shards)

    def _finish(self) -> str:
        """Return the command that builds what is absent, with what its job must ask for."""
        option = ""
        if self._views is not None:
            option = f" with [views] count = {self._views.count} or more,"
        elif self._dataset in self._catalogue.views and any(
            self.shards[what] for what in self.shards if what != "ingest"
        ):
            option = " with [views] plain = true,"
        return f"cache build JOB.toml    #{option} finishes it"
