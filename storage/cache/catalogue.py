"""All that a cache promises and has committed, looked at once: what planning asks in place of the store.

A catalogue is of one moment and does not change; what is built after it was read is not in it. Its order makes it true
beside a build that goes on: commits are listed before plans are read, so that each of them is planned, and promises are
read last, for they are written before whatever they speak of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from storage.errors import CorruptObject, MissingSource, NotInCache
from storage.format.ledger import Ledger
from storage.format.objects import Objects
from storage.format.rows import RowPlan, ShardRows, check_plan, read_plan
from storage.format.shards import Commit, ShardKey, read_commits
from storage.format.specs import CacheSpec, DatasetSpec, TeacherSpec, ViewsSpec, read_spec
from storage.format.stages import VIEWS_JSON, Stage, list_datasets, list_teachers, look_at_stages
from storage.tokenizer import TokenizerFile, parse_tokenizer
from storage.views import PLAIN

TOKENIZER_JSON = "tokenizer.json"


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What a cache holds, of some datasets and teachers or of all.

    Attributes:
        objects: the cache's.
        about: its `cache.json`.
        datasets, views, plans: by dataset; `views` of augmented ones alone.
        teachers: by dataset and name.
        commits: stage → number of each committed shard → version of its commit; a dataset's ingest first.
    """

    objects: Objects
    about: CacheSpec
    datasets: Mapping[str, DatasetSpec]
    views: Mapping[str, ViewsSpec]
    plans: Mapping[str, RowPlan]
    teachers: Mapping[tuple[str, str], TeacherSpec]
    commits: Mapping[Stage, Mapping[int, str]]

    @classmethod
    def read(
        cls,
        objects: Objects,
        about: CacheSpec,
        datasets: Iterable[str] | None = None,
        teachers: Collection[str] | None = None,
    ) -> Catalogue:
        """Return what a cache holds now.

        Args:
            objects: the cache's.
            about: its `cache.json`.
            datasets, teachers: names, also of what is not there; None for all.

        Raises:
            MissingObject: a promise is lost, or a segment of a plan.
            CorruptObject: a promise or a plan is damaged.
        """
        found = look_at_stages(objects, datasets, teachers)
        plans = {each.dataset: read_plan(objects, each.dataset) for each in found}  # after the commits were listed
        for each in found:
            committed = (shard for shards in each.commits.values() for shard in shards)
            check_plan(objects, each.dataset, plans[each.dataset], committed)
        return cls(
            objects=objects,
            about=about,
            datasets={each.dataset: read_spec(objects, f"{each.dataset}/dataset.json", DatasetSpec) for each in found},
            views={
                each.dataset: read_spec(objects, f"{each.dataset}/{VIEWS_JSON}", ViewsSpec)
                for each in found
                if each.has_views
            },
            plans=plans,
            teachers={
                (each.dataset, teacher): read_spec(objects, f"{each.dataset}/{teacher}/teacher.json", TeacherSpec)
                for each in found
                for teacher in each.teachers
            },
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

    def shards(self, dataset: str) -> list[ShardRows]:
        """Return every planned shard of a dataset, ascending and contiguous. Raises NotInCache."""
        self.dataset(dataset)
        return self.plans[dataset].shards()

    def committed(self, dataset: str, teacher: str | None = None, view: str = PLAIN) -> set[int]:
        """Return the numbers of the shards that are whole, for the ingest (no teacher) or for a teacher's targets."""
        return set(self.commits.get((dataset, teacher, view), ()))

    def view_names(self, dataset: str, teacher: str) -> list[str]:
        """Return the views of which a teacher has committed shards: `plain` first, then by number."""
        views = [stage[2] for stage, shards in self.commits.items() if shards and stage[:2] == (dataset, teacher)]
        return sorted(views, key=lambda view: (view != PLAIN, len(view), view))

    def ledger(self) -> Ledger:
        """Return a summary of every commit; those that no ledger file holds are read now."""
        return Ledger.load(self.objects, self.commits)

    def read_commits(self, dataset: str, teacher: str | None = None, view: str = PLAIN) -> list[Commit]:
        """Return the commits of a stage, in shard order, with their tables, but for those that are gone by now."""
        shards = sorted(self.committed(dataset, teacher, view))
        return read_commits(self.objects, [ShardKey(dataset, teacher, view, shard).commit_path for shard in shards])


def read_tokenizer(objects: Objects, dataset: DatasetSpec) -> TokenizerFile | None:
    """Return the tokenizer of a dataset; None if it has none. Raises CorruptObject if it is not the promised one."""
    promised, path = dataset.tokenizer, f"{dataset.name}/{TOKENIZER_JSON}"
    if promised is None:
        return None
    try:
        tokenizer = parse_tokenizer(objects.get(path), f"{objects.url}/{path}")
        found = tokenizer.fingerprint
    except MissingSource as error:
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
