"""All that a cache promises and has committed, looked at once: what planning asks in place of the store.

A catalogue is of one moment and does not change; what is built after it was read is not in it. Its order makes it true
beside a build that goes on: commits are listed before plans are read, so that each of them is planned, and promises are
read last, for they are written before whatever they speak of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from storage.errors import CorruptObject, IncompleteCache, MissingSource, NotInCache
from storage.format.belonging import Promises, Told
from storage.format.committing import read_row_shape
from storage.format.ledger import Ledger
from storage.format.objects import Objects
from storage.format.rows import PlannedShards, RowPlan, check_plan, read_plan
from storage.format.shards import Commit, Committed, ShardKey, read_commits
from storage.format.specs import CacheSpec, DatasetSpec, TeacherSpec, ViewsSpec, read_promise, read_spec
from storage.format.stages import VIEWS_JSON, Stage, list_datasets, list_teachers, look_at_stages
from storage.language.tokenizer import TokenizerFile, parse_tokenizer
from storage.tasks import task_of
from storage.views import PLAIN

TOKENIZER_JSON = "tokenizer.json"
Columns = Sequence[str] | None  # None: all
READ_AT_ONCE = 1024  # commits, as Python objects of 10 kB and more


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What a cache holds, of some datasets and teachers or of all.

    Attributes:
        objects: the cache's.
        about: its `cache.json`.
        datasets, views: by dataset; `views` of augmented ones alone.
        planned: every planned shard of a dataset, ascending and contiguous.
        plans: with their extents, where they were asked for: of a dataset of files there are as many as files.
        teachers: by dataset and name.
        promises: what each commit must say that it belongs to.
        commits: stage → its committed shards, each with the version of its commit; a dataset's ingest first.
    """

    objects: Objects
    about: CacheSpec
    datasets: Mapping[str, DatasetSpec]
    views: Mapping[str, ViewsSpec]
    planned: Mapping[str, PlannedShards]
    plans: Mapping[str, RowPlan]
    teachers: Mapping[tuple[str, str], TeacherSpec]
    promises: Promises
    commits: Mapping[Stage, Committed]
    # filled as they are asked for; what a catalogue says does not depend on them
    _first_commits: dict[ShardKey, tuple[Commit, Columns]] = field(default_factory=dict, init=False, repr=False)
    _row_shapes: dict[tuple[str, str, str], tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def read(
        cls,
        objects: Objects,
        about: CacheSpec,
        datasets: Iterable[str] | None = None,
        teachers: Collection[str] | None = None,
        *,
        with_plans: bool = False,
    ) -> Catalogue:
        """Return what a cache holds now.

        Args:
            objects: the cache's.
            about: its `cache.json`.
            datasets, teachers: names, also of what is not there; None for all.
            with_plans: whether the plans' extents are wanted too.

        Raises:
            MissingObject: a promise is lost, or a segment of a plan.
            CorruptObject: a promise or a plan is damaged.
        """
        found = look_at_stages(objects, datasets, teachers)
        plans = {each.dataset: read_plan(objects, each.dataset) for each in found}  # after the commits were listed
        for each in found:
            committed = [shards.last for shards in each.commits.values() if shards]
            check_plan(objects, each.dataset, plans[each.dataset], committed)
        # last: a promise is written before whatever it speaks of
        datasets = {name: read_promise(objects, f"{name}/dataset.json", DatasetSpec) for name in plans}
        spoken = {
            (each.dataset, teacher): read_promise(objects, f"{each.dataset}/{teacher}/teacher.json", TeacherSpec)
            for each in found
            for teacher in each.teachers
        }
        # as they were written, so that no promise is read twice
        told: dict[tuple[str, str | None], Told] = dict(spoken.items())
        told |= {(name, None): promise for name, promise in datasets.items()}
        planned = {name: plan.shards() for name, plan in plans.items()}
        return cls(
            objects=objects,
            about=about,
            datasets={name: spec for name, (spec, _) in datasets.items()},
            views={
                each.dataset: read_spec(objects, f"{each.dataset}/{VIEWS_JSON}", ViewsSpec)
                for each in found
                if each.has_views
            },
            planned=planned,
            plans=plans if with_plans else {},
            teachers={key: spec for key, (spec, _) in spoken.items()},
            promises=Promises(objects, about, told, planned),
            commits={stage: shards for each in found for stage, shards in each.commits.items()},
        )

    @property
    def url(self) -> str:
        """Return where the cache is."""
        return self.objects.url

    def dataset(self, name: str) -> DatasetSpec:
        """Return what is promised of a dataset. Raises NotInCache."""
        if name not in self.datasets:
            raise no_dataset(self.objects, name)
        return self.datasets[name]

    def teacher(self, dataset: str, name: str) -> TeacherSpec:
        """Return what is promised of a teacher's targets. Raises NotInCache."""
        self.dataset(dataset)
        if (dataset, name) not in self.teachers:
            raise no_teacher(self.objects, dataset, name)
        return self.teachers[dataset, name]

    def teacher_names(self, dataset: str) -> list[str]:
        """Return the teachers of a dataset, sorted."""
        return [teacher for of, teacher in self.teachers if of == dataset]

    def tokenizer(self, dataset: str) -> TokenizerFile | None:
        """Return the tokenizer of a dataset, read now: it may be of megabytes; None if it has none.

        Raises:
            CorruptObject: the file is not the one that was promised.
        """
        return read_tokenizer(self.objects, self.dataset(dataset))

    def shards(self, dataset: str) -> PlannedShards:
        """Return every planned shard of a dataset, ascending and contiguous. Raises NotInCache."""
        self.dataset(dataset)
        return self.planned[dataset]

    def num_rows(self, dataset: str) -> int:
        """Return the number of planned rows of a dataset. Raises NotInCache."""
        shards = self.shards(dataset)
        return shards[-1].stop if shards else 0

    def committed(self, dataset: str, teacher: str | None = None, view: str = PLAIN) -> set[int]:
        """Return the numbers of the shards that are whole, for the ingest (no teacher) or for a teacher's targets."""
        return set(self.commits.get((dataset, teacher, view), ()))

    def view_names(self, dataset: str, teacher: str) -> list[str]:
        """Return the views of which a teacher has committed shards: `plain` first, then by number."""
        views = [stage[2] for stage, shards in self.commits.items() if shards and stage[:2] == (dataset, teacher)]
        # by length first: view-1000 comes after view-999
        return sorted(views, key=lambda view: (view != PLAIN, len(view), view))

    def row_shape(self, dataset: str, teacher: str, array: str) -> tuple[int, ...]:
        """Return the shape of one row of a teacher's array, which its first committed shard tells; it is read once.

        Where only labelled positions are stored, that of a row of which each position is one.

        Raises:
            IncompleteCache: the teacher has none.
        """
        key = (dataset, teacher, array)
        if key not in self._row_shapes:
            commit = self.first_commit(dataset, teacher)
            if commit is None:
                raise IncompleteCache(f"{self.url}: nothing of {dataset}/{teacher} is built", do="cache build JOB.toml")
            of_row = read_row_shape(self.objects, commit, array)
            if self.teachers[dataset, teacher].labelled_positions:
                spec = self.dataset(dataset)
                of_row = (*task_of(spec).sites(spec.input_shape), *of_row)
            self._row_shapes[key] = of_row
        return self._row_shapes[key]

    def first_commit(self, dataset: str, teacher: str | None) -> Commit | None:
        """Return the commit of the first shard of an ingest, or of a teacher's first view; it is read once.

        It may have a part of its table only.
        """
        views = [PLAIN] if teacher is None else self.view_names(dataset, teacher)
        shards = self.commits.get((dataset, teacher, views[0])) if views else None
        if not shards:
            return None
        key = ShardKey(dataset, teacher, views[0], shards.first)
        if key not in self._first_commits:
            self._first_commits.update((commit.key, (commit, None)) for commit in self._read([key], None))
        return self._first_commits[key][0] if key in self._first_commits else None

    def ledger(self, stages: Iterable[Stage] | None = None) -> Ledger:
        """Return a summary of every commit; those that no segment of it holds are read now.

        Args:
            stages: those that are looked at; such a ledger is not to be written. None for all.
        """
        listed = self.commits if stages is None else {stage: self.commits[stage] for stage in stages}
        return Ledger.load(self.objects, listed, self.promises.checked)

    def read_commits(self, dataset: str, teacher: str | None = None, view: str = PLAIN) -> list[Commit]:
        """Return the commits of a stage, in shard order, with their tables, but for those that are gone by now."""
        return [commit for commits in self.iter_commits((dataset, teacher, view)) for commit in commits]

    def iter_commits(
        self, stage: Stage, columns: Columns = None, shards: Sequence[int] | None = None
    ) -> Iterator[list[Commit]]:
        """Yield the commits of a stage, in shard order and some at a time, but for those that are gone by now.

        Args:
            stage: which.
            columns: of their tables, those that are read beside `row`; None for all.
            shards: numbers of those that are wanted, ascending; None for all.
        """
        numbers = list(self.commits.get(stage, ())) if shards is None else shards
        for first in range(0, len(numbers), READ_AT_ONCE):
            keys = [ShardKey(*stage, shard) for shard in numbers[first : first + READ_AT_ONCE]]
            known = self._known(keys[0], columns)
            commits = known + self._read(keys[len(known) :], columns)
            if commits and not first and not known:
                self._first_commits[commits[0].key] = (commits[0], columns)
            yield commits

    def _known(self, key: ShardKey, columns: Columns) -> list[Commit]:
        """Return a commit that has been read before, if all that is wanted of its table was read."""
        if key not in self._first_commits:
            return []
        commit, read = self._first_commits[key]
        if columns is None:
            return [commit] if read is None else []
        names = [name for name in commit.table.column_names if name in {"row", *columns}]
        return [replace(commit, table=commit.table.select(names))] if read is None or {*columns} <= {*read} else []

    def _read(self, keys: list[ShardKey], columns: Columns) -> list[Commit]:
        """Return commits, each of which belongs here, but for those that are gone by now. Raises CorruptObject."""
        commits = read_commits(self.objects, [key.commit_path for key in keys], columns)
        return [self.promises.checked(commit) for commit in commits]


def read_tokenizer(objects: Objects, dataset: DatasetSpec) -> TokenizerFile | None:
    """Return the tokenizer of a dataset; None if it has none. Raises CorruptObject if it is not the promised one."""
    promised, path = dataset.tokenizer, f"{dataset.name}/{TOKENIZER_JSON}"
    if promised is None:
        return None
    try:
        tokenizer = parse_tokenizer(objects.get(path), f"{objects.url}/{path}")
        found = tokenizer.fingerprint
    except MissingSource as error:  # a user's own file would be refused so; within a cache it is damage
        found = str(error.found)
    if found != promised:
        raise CorruptObject(
            f"{objects.url}/{path} is not the tokenizer of this dataset",
            found=found,
            expected=f"fingerprint {promised}",
            do="restore it from a copy of the cache",
        )
    return tokenizer


def no_dataset(objects: Objects, name: str) -> NotInCache:
    """Return the error of a dataset that is not there, with those that are. Raises MissingObject: its spec is lost."""
    return NotInCache(
        f"{objects.url} has no dataset {name}",
        found=", ".join(list_datasets(objects)) or "no datasets",
        do=f'name one of these, or add a [[dataset]] named "{name}" to the cache job, then cache build',
    )


def no_teacher(objects: Objects, dataset: str, name: str) -> NotInCache:
    """Return the error of a teacher that is not there, with those that are. Raises MissingObject: its spec is lost."""
    return NotInCache(
        f"{objects.url} has no teacher {name} for {dataset}",
        found=", ".join(list_teachers(objects, dataset)) or "no teachers",
        do=f'add a [[teacher]] named "{name}" to the cache job, then cache build',
    )
