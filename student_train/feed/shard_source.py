"""The fed rows of a selection as they are stored: which arrays some needs take, and a shard of them at a time.

S rows of a shard, of which some may not be fed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from storage.cache import Cache
from storage.encodings import Encoded, FeatureEncoding
from storage.errors import BadRequest, CorruptObject, IncompleteCache, StaleCache, TryAgain
from storage.format.committing import Bytes, fetch_arrays, unpack_checked
from storage.format.promised import check_positions
from storage.format.shards import Commit, ShardKey, list_commits
from storage.format.specs import TeacherSpec
from storage.inputs import Inputs, Stored, inputs_of
from storage.inputs.encoded import ToDecode
from storage.inputs.ragged import Ragged
from storage.tasks import task_of
from storage.tasks.base import count_labelled
from storage.views import PLAIN
from storage.views.check import readable_rows
from student_train.feed.batches import ArrayKey, Arrays, Name, Needs, labelled_sites
from student_train.feed.selection import Selection
from student_train.options.by_dataset import teacher_of

INPUTS = "inputs"
LABELS = "labels"  # an array, or a column of the sample table, as the task says
FEATURE = "feature/"


class Wanted(NamedTuple):
    """What is wanted of one stage of a shard: two requests, one after the other, that wait for no other stage's."""

    key: ShardKey
    arrays: tuple[str, ...]
    with_table: bool = False


class Fetched(NamedTuple):
    """A commit that was checked, and the members of the arrays that are wanted, as they are stored."""

    commit: Commit
    members: Mapping[str, Bytes]


Fetch = Callable[[Wanted], Fetched]


class ShardSource:
    """The fed rows of one selection, a shard at a time, as stored. Reads are thread-safe.

    Args:
        cache: where they are.
        selection: which ones.
        num_ahead: how many shards are fetched before they are read, where some are read one after another, by how many
            views are read at a time; each has its own targets.
    """

    def __init__(self, cache: Cache, selection: Selection, num_ahead: Callable[[int], int] = lambda views: 0):
        self.cache = cache
        self.selection = selection
        self.num_ahead = num_ahead
        spec, task = selection.spec, task_of(selection.spec)
        array, self._sites = task.label_array, task.sites(spec.input_shape)
        self.label_arrays: tuple[Name, ...] = () if array is None else (array,)
        views = {} if selection.views is None else {v: selection.views.spec.view(v) for v in selection.views.names}
        self._begun = {name: view for name, view in views.items() if inputs_of(spec).left(view) != view}

    def names(self, needs: Needs, view: str = PLAIN) -> frozenset[Name]:
        """Return what must be read to meet some needs in an epoch that shows a view."""
        soft = [
            ArrayKey(teacher, array)
            for teacher in needs.teachers
            if needs.of(teacher)
            for array in self.teacher(teacher).encoding.array_names(needs.of(teacher))
        ]
        keys = (key._replace(view=view) for key in (*soft, *needs.features))
        return frozenset({self.inputs(view), *self.label_arrays, *keys})

    def inputs(self, view: str) -> str:
        """Return the name of the inputs that a view begins with: pictures are decoded anew for each view that crops."""
        return f"{INPUTS}/{view}" if view in self._begun else INPUTS

    def lengths(self, names: Iterable[Name], shards: Sequence[int]) -> dict[Name, NDArray[np.int64]]:
        """Return of those arrays whose rows have a length of their own how long the fed rows of some shards are."""
        lengths_P, labelled_P = self.selection.lengths_of(shards), self.selection.labelled_of(shards)
        found: dict[Name, NDArray[np.int64]] = {}
        for name in names:
            if isinstance(name, ArrayKey) and self.selection.at_labels(name.teacher):
                if labelled_P is None:
                    raise BadRequest(
                        f"the targets of {name.teacher} are of labelled positions alone in some datasets only",
                        found=f"{', '.join(self.selection.datasets)}, of which not all say how many a row has",
                        do="cache build JOB.toml --as NAME, and train from one that is built anew",
                    )
                found[name] = labelled_P
            elif lengths_P is not None and name in {INPUTS, *self.label_arrays}:  # a label of each item
                found[name] = lengths_P
        return found

    def teacher(self, name: str) -> TeacherSpec:
        """Return what the cache promises of a teacher; of one of each dataset, what all of them have alike."""
        dataset = self.selection.parts[0].dataset
        return self.selection.catalogue.teacher(dataset, teacher_of(name, dataset) or name)

    def feature(self, key: ArrayKey) -> FeatureEncoding:
        """Return how a feature is stored."""
        return self.teacher(key.teacher).features[key.array.removeprefix(FEATURE)]

    def at_labels(self, arrays: Arrays) -> Arrays:
        """Return arrays of some rows, those of teachers at the sites that have a label, where rows have many sites.

        They are (N, …), in the order of the rows: as they are stored, or picked here where each site has its own.
        """
        everywhere = [
            name
            for name in arrays
            if self.label_arrays and isinstance(name, ArrayKey) and not self.selection.at_labels(name.teacher)
        ]
        if not everywhere:
            return arrays
        sites_N = labelled_sites(arrays[LABELS])
        flat = {name: arrays[name].flatten(0, len(self._sites)) for name in everywhere}
        return arrays | {name: values.index_select(0, sites_N) for name, values in flat.items()}

    def encoded(self, arrays: Arrays) -> dict[str, Encoded]:
        """Return the soft targets among some arrays by teacher; where rows have many sites, as `at_labels`."""
        stored: dict[str, dict[str, Tensor]] = {}
        for name, values in self.at_labels(arrays).items():
            if isinstance(name, ArrayKey) and not name.array.startswith(FEATURE):
                stored.setdefault(name.teacher, {})[name.array] = values
        specs = {teacher: self.teacher(teacher) for teacher in stored}
        return {name: Encoded(spec.encoding, spec.num_classes, stored[name]) for name, spec in specs.items()}

    def wanted(self, index: int, names: frozenset[Name]) -> list[Wanted]:
        """Return what is to be fetched of shard `shards_S[index]`: of its ingest, then of each teacher and view."""
        ingest = self.selection.key(index)
        kind = inputs_of(self.selection.catalogue.dataset(ingest.dataset))  # of several, each its own
        of_labels = [LABELS] if LABELS in names else []
        keys = [name for name in names if isinstance(name, ArrayKey)]
        # what a view is a function of is in the table
        augmented = any(key.view != PLAIN for key in keys) or bool(names & set(map(self.inputs, self._begun)))
        wanted = [Wanted(ingest, (*kind.arrays, *of_labels), with_table=augmented)]
        for teacher, view in _asked(names):
            arrays = tuple(key.array for key in keys if (key.teacher, key.view) == (teacher, view))
            own = teacher_of(teacher, ingest.dataset)
            assert own is not None, "rows are selected where every teacher is there"
            wanted.append(Wanted(ingest._replace(teacher=own, view=view), arrays))
        return wanted

    def fetch(self, wanted: Wanted) -> Fetched:
        """Return a commit and members, after every check that can be made of them, those by the plan among them.

        Raises:
            IncompleteCache, CorruptObject: as `Cache.commit` and `fetch_arrays`.
        """
        commit = self.cache.unchecked_commit(wanted.key, with_table=wanted.with_table)
        commit = self.selection.catalogue.promises.checked(commit)
        return Fetched(commit, fetch_arrays(self.cache.objects, commit, wanted.arrays))

    @contextmanager
    def reading(
        self, index: int, names: frozenset[Name], fetch: Fetch | None = None
    ) -> Iterator[Iterator[tuple[Name, Stored | ToDecode]]]:
        """Give the named arrays of shard `shards_S[index]`, all S rows, to be copied from: inputs, then targets.

        Pictures are still to be decoded: by whoever is handed them, within, before the next array is asked for.

        Args:
            index: which shard.
            names: of arrays.
            fetch: gives what `fetch` would, asked of each of `wanted` in their order, once; None: they are fetched now.

        Raises:
            StaleCache: a student would not be shown what a teacher saw.
            CorruptObject: bytes are missing or altered, or are of values that cannot have been encoded.
            TryAgain: one of these, raised here or within, of a shard that was built again since the rows were selected.
        """
        try:
            yield self._read_shard(index, names, fetch or self.fetch)
        except (CorruptObject, IncompleteCache, StaleCache) as error:
            if (key := self._changed(self.selection.key(index), names)) is None:
                raise
            raise TryAgain(
                f"{self.cache.url}: {key} has changed since its rows were selected",
                found=f"{type(error).__name__}: {error.what}",
                expected="a cache from which no build and no repair takes shards meanwhile",
                do="the same command again; it resumes",
            ) from error

    def _changed(self, ingest: ShardKey, names: frozenset[Name]) -> ShardKey | None:
        """Return the first stage of a shard whose commit is not the one that the catalogue lists, or None."""
        asked = _asked(names)
        keys = [ingest._replace(teacher=teacher_of(teacher, ingest.dataset), view=view) for teacher, view in asked]
        for key in (ingest, *keys):
            listed = self.selection.catalogue.commits.get((key.dataset, key.teacher, key.view))
            version = None if listed is None else listed.get(key.shard)
            if list_commits(self.cache.objects, key.folder).get(key.shard) != version:
                return key
        return None

    def _read_shard(self, index: int, names: frozenset[Name], fetch: Fetch) -> Iterator[tuple[Name, Stored | ToDecode]]:
        """Yield a shard's arrays by name, each checked against its commit and against what a student is to be shown."""
        of_ingest, *of_teachers = self.wanted(index, names)
        ingest, stored = _unpacked(of_ingest, fetch)
        kind = inputs_of(self.selection.catalogue.dataset(of_ingest.key.dataset))
        given = kind.rows(stored, ingest.about, str(of_ingest.key))
        yield from (item for item in stored.items() if item[0] in names and item[0] != INPUTS)
        yield from self._inputs(index, names, kind, given, ingest)
        for (teacher, view), wanted in zip(_asked(names), of_teachers, strict=True):
            commit, targets = _unpacked(wanted, fetch)
            views = None if self.selection.views is None else self.selection.views.spec
            self.cache.check_view(ingest, commit, given, views)  # before any of them is handed on (invariant 5)
            self._check_features(commit, targets)
            if LABELS in stored:
                check_positions(commit, targets, stored[LABELS])
            if self.selection.at_labels(teacher):
                targets = {name: _at_labels(values, stored[LABELS]) for name, values in targets.items()}
            yield from ((ArrayKey(teacher, array, view), values) for array, values in targets.items())

    def _inputs(
        self, index: int, names: frozenset[Name], kind: Inputs, given: Stored, ingest: Commit
    ) -> Iterator[tuple[Name, Stored | ToDecode]]:
        """Yield the inputs of a shard, those of all names that are asked for."""
        rows_F = self.selection.rows[index]
        if INPUTS in names:
            yield INPUTS, kind.fed(given, rows_F, own=self.selection.own)
        for name in names & set(map(self.inputs, self._begun)):
            view, readable = self._begun[str(name).removeprefix(f"{INPUTS}/")], readable_rows(ingest.table)
            places_S = np.cumsum(readable.mask_S) - 1  # of rows among those that can be read; fed ones can
            keys_F = readable.keys_B[places_S[rows_F]]
            yield name, kind.fed(given, rows_F, view, keys_F, self.selection.own)

    def _check_features(self, commit: Commit, targets: Mapping[str, Stored]) -> None:
        """Raise CorruptObject if a feature, whose shape nothing promises, is of another than in the first shard."""
        key = commit.key
        for array in (array for array in targets if array.startswith(FEATURE)):
            expected = self.selection.catalogue.row_shape(key.dataset, str(key.teacher), array)
            stored = targets[array]
            # of labelled positions, as of a row of which each is one
            found = (*self._sites, *stored.flat_T.shape[1:]) if isinstance(stored, Ragged) else stored.shape[1:]
            if found != expected:
                what, do = f"{key}: {array} is not as in the first shard", "see what `cache verify` says of it"
                raise CorruptObject(what, f"rows of {found}", f"rows of {expected}", do)


def views_of(names: Iterable[Name]) -> set[str]:
    """Return the views of which arrays are read."""
    return {name.view for name in names if isinstance(name, ArrayKey)}


def _asked(names: Iterable[Name]) -> list[tuple[str, str]]:
    """Return of which teachers and views arrays are asked for, in the order in which they are read."""
    return sorted({(name.teacher, name.view) for name in names if isinstance(name, ArrayKey)})


def _unpacked(wanted: Wanted, fetch: Fetch) -> tuple[Commit, dict[str, Stored]]:
    """Return a commit and its arrays; the bytes that they were made of are let go."""
    commit, members = fetch(wanted)
    return commit, unpack_checked(commit, members, wanted.arrays, writeable=False)


def _at_labels(values_S: Stored, labels_S: Stored) -> Ragged:
    """Return an array of a teacher at labelled sites alone, from one of those or of all sites."""
    if isinstance(values_S, Ragged):
        return values_S
    assert isinstance(labels_S, np.ndarray)  # rows of their own length are never stored otherwise
    counts_S = count_labelled(labels_S)
    return Ragged(values_S[labels_S >= 0], np.concatenate([np.zeros(1, np.int64), counts_S.cumsum()]))
