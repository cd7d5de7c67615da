"""Whether a shard is of this cache and of today's promises: what its commit says, against what lies beside it.

Every commit that is read to be used goes through `Promises.checked`; from then on it knows what its arrays must be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from storage.errors import CorruptObject, MissingObject
from storage.format.objects import Objects
from storage.format.promised import ShardPromise
from storage.format.rows import ShardRows
from storage.format.shards import Belonging, Commit
from storage.format.specs import WEIGHTS_JSON, CacheSpec, DatasetSpec, TeacherSpec, WeightsSpec, read_promise, read_spec

Told = tuple[DatasetSpec | TeacherSpec, str]  # a promise, and its digest


class Promises:
    """What a cache promises, with digests as they were written; each is read once, for promises never change.

    Args:
        objects: the cache's.
        about: its `cache.json`.
        told: what is known already, by dataset and teacher (None: of the dataset), as `read_promise` gives it.
        planned: every planned shard of a dataset, where that is known.
    """

    def __init__(
        self,
        objects: Objects,
        about: CacheSpec,
        told: Mapping[tuple[str, str | None], Told] | None = None,
        planned: Mapping[str, Sequence[ShardRows]] | None = None,
    ):
        self._objects = objects
        self._about = about
        self._told = dict(told or {})
        self._planned = planned or {}
        self._loaded: dict[str, str] = {}
        self._of_shards: dict[tuple[str, str | None], ShardPromise] = {}

    def of(self, dataset: str, teacher: str | None = None) -> Belonging:
        """Return what a shard of a dataset's ingest, or of a teacher's targets, belongs to.

        Raises:
            MissingObject: nothing is promised of it.
            CorruptObject: what is promised of it is damaged.
        """
        promise = None if teacher is None else self._digest(dataset, teacher)
        return Belonging(self._about.id, self._digest(dataset, None), promise)

    def dataset(self, name: str) -> DatasetSpec:
        """Return what is promised of a dataset. Raises MissingObject, CorruptObject."""
        spec = self._read(name, None)[0]
        assert isinstance(spec, DatasetSpec)
        return spec

    def teacher(self, dataset: str, name: str) -> TeacherSpec:
        """Return what is promised of a teacher's targets. Raises MissingObject, CorruptObject."""
        spec = self._read(dataset, name)[0]
        assert isinstance(spec, TeacherSpec)
        return spec

    def checked(self, commit: Commit) -> Commit:
        """Return a commit that belongs here, as far as it says, and that knows what is promised of its arrays.

        Raises:
            CorruptObject: it does not, or is not of the rows that were planned, or not as promised; what it says and
                what it should say are both named.
            MissingObject: nothing is promised of it.
        """
        expected, said = self.of(commit.key.dataset, commit.key.teacher), commit.belonging
        # a cache of format 1 has the layout of 2
        version, layout = max(2, self._about.format), 2 if said is None else 3
        another_cache, checks = "is a shard of another cache", []
        checks.append((another_cache, f"layout of format {layout}", f"layout of format {version}"))
        if said is not None:
            checks.append((another_cache, f"cache {said.cache}", f"cache {expected.cache}"))
            fingerprints = (f"dataset fingerprint {said.dataset}", f"dataset fingerprint {expected.dataset}")
            checks.append(("is of another dataset than dataset.json promises", *fingerprints))
        if commit.promise is not None:  # also of most commits of format 2
            fingerprints = (f"teacher fingerprint {commit.promise}", f"teacher fingerprint {expected.promise}")
            checks.append(("was made by another teacher than teacher.json promises", *fingerprints))
        if (weights := commit.about.get("weights")) is not None:
            promised = self.weights(commit.key.dataset, str(commit.key.teacher))
            other = "was made by a teacher with other weights than weights.json promises"
            checks.append((other, f"weights {weights}", f"weights {promised}"))
        # the first that differs says most: a shard of another cache is of another dataset too
        for what, found, wanted in checks:
            if found != wanted:
                url = self._objects.url
                do = f"cache verify {url} --repair, then cache build JOB.toml"
                raise CorruptObject(f"{url}: {commit.key} {what}", found=found, expected=wanted, do=do)
        self._check_rows(commit)
        promise = self.of_shard(commit.key.dataset, commit.key.teacher)
        promise.check_commit(commit)
        return replace(commit, promised=promise)

    def of_shard(self, dataset: str, teacher: str | None) -> ShardPromise:
        """Return what is promised of the arrays of an ingest, or of a teacher's targets. Raises as `of`."""
        key = (dataset, teacher)
        if key not in self._of_shards:
            of_teacher = None if teacher is None else self.teacher(dataset, teacher)
            self._of_shards[key] = ShardPromise(self.dataset(dataset), of_teacher)
        return self._of_shards[key]

    def _check_rows(self, commit: Commit) -> None:
        """Raise CorruptObject if a commit is not of the rows that were planned for it, where the plan is known."""
        shards, number = self._planned.get(commit.key.dataset), commit.key.shard
        if shards is None or number >= len(shards):
            return
        spec, planned = self.dataset(commit.key.dataset), shards[number]
        if not spec.places((planned.start, planned.stop), (commit.start, commit.stop)):
            raise CorruptObject(
                f"{commit.key} is not the shard that was planned",
                found=f"rows {commit.start} to {commit.stop}",
                expected=f"rows {planned.start} to {planned.stop}",
                do=f"cache verify {self._objects.url} --repair, then cache build JOB.toml",
            )

    def weights(self, dataset: str, teacher: str) -> str:
        """Return the digest of a teacher's weights as loaded. Raises MissingObject, CorruptObject."""
        path = f"{dataset}/{teacher}/{WEIGHTS_JSON}"
        if path not in self._loaded:
            self._loaded[path] = read_spec(self._objects, path, WeightsSpec).weights
        return self._loaded[path]

    def weights_or_none(self, dataset: str, teacher: str) -> str | None:
        """Return the digest of a teacher's weights as loaded, if the cache says it. Raises CorruptObject."""
        try:
            return self.weights(dataset, teacher)
        except MissingObject:
            return None

    def _digest(self, dataset: str, teacher: str | None) -> str:
        return self._read(dataset, teacher)[1]

    def _read(self, dataset: str, teacher: str | None) -> Told:
        """Return a promise and its digest as it was written. Raises MissingObject, CorruptObject."""
        if (dataset, teacher) not in self._told:
            self._told[dataset, teacher] = (
                read_promise(self._objects, f"{dataset}/dataset.json", DatasetSpec)
                if teacher is None
                else read_promise(self._objects, f"{dataset}/{teacher}/teacher.json", TeacherSpec)
            )
        return self._told[dataset, teacher]
