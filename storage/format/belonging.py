"""Whether a shard is of this cache and of today's promises: what its commit says, against what lies beside it."""

from __future__ import annotations

from collections.abc import Mapping

from storage.errors import CorruptObject
from storage.format.objects import Objects
from storage.format.shards import Belonging, Commit
from storage.format.specs import WEIGHTS_JSON, CacheSpec, DatasetSpec, TeacherSpec, WeightsSpec, read_promise, read_spec


class Promises:
    """Digests of what a cache promises, as they were written; each is read once, for promises never change.

    Args:
        objects: the cache's.
        about: its `cache.json`.
        told: digests that are known already, by dataset and teacher (None: of the dataset).
    """

    def __init__(self, objects: Objects, about: CacheSpec, told: Mapping[tuple[str, str | None], str] | None = None):
        self._objects = objects
        self._about = about
        self._told = dict(told or {})
        self._loaded: dict[str, str] = {}

    def of(self, dataset: str, teacher: str | None = None) -> Belonging:
        """Return what a shard of a dataset's ingest, or of a teacher's targets, belongs to.

        Raises:
            MissingObject: nothing is promised of it.
            CorruptObject: what is promised of it is damaged.
        """
        promise = None if teacher is None else self._digest(dataset, teacher)
        return Belonging(self._about.id, self._digest(dataset, None), promise)

    def checked(self, commit: Commit) -> Commit:
        """Return a commit that belongs here, as far as it says.

        Raises:
            CorruptObject: it does not; what it says and what it should say are both named.
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
        return commit

    def weights(self, dataset: str, teacher: str) -> str:
        """Return the digest of a teacher's weights as loaded. Raises MissingObject, CorruptObject."""
        path = f"{dataset}/{teacher}/{WEIGHTS_JSON}"
        if path not in self._loaded:
            self._loaded[path] = read_spec(self._objects, path, WeightsSpec).weights
        return self._loaded[path]

    def _digest(self, dataset: str, teacher: str | None) -> str:
        if (dataset, teacher) not in self._told:
            path, kind = (
                (f"{dataset}/dataset.json", DatasetSpec)
                if teacher is None
                else (f"{dataset}/{teacher}/teacher.json", TeacherSpec)
            )
            self._told[dataset, teacher] = read_promise(self._objects, path, kind)[1]
        return self._told[dataset, teacher]
