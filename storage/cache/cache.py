"""A cache: rows in, arrays out. The only way in for both sides.

    <cache>/
      cache.json                                    format and identity; written first
      <dataset>/dataset.json                        what makes the content of its rows
      <dataset>/tokenizer.json                      of text: what makes tokens of it
      <dataset>/views.json                          which function of a sample its views are, if it has any
      <dataset>/plan/00000.parquet                  which sample is which row; where shards end
      <dataset>/ingest/00042.parquet                commit: sample_id, label, split, digests, error of each row
      <dataset>/ingest/00042-7f3a0c12.zarr.zip      `inputs`, and `labels` of each position of tokens
      <dataset>/<teacher>/teacher.json              which function made the targets
      <dataset>/<teacher>/<view>/00042.parquet      commit: the teacher's top class, entropy, … of each row
      <dataset>/<teacher>/<view>/00042-….zarr.zip   `logits`, `feature/<name>`
      ledger/00000007.parquet                       summaries of commits

FORMAT.md is the whole contract. In a cache of format 2 a Zarr group is a folder, `00042-7f3a0c12.zarr/`.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage.cache.catalogue import Catalogue, no_dataset, no_teacher, read_tokenizer
from storage.cache.samples import Samples
from storage.errors import BadRequest, IncompleteCache, MissingObject, NotInCache, StaleCache
from storage.format.belonging import Promises
from storage.format.committing import copy_shard, read_arrays, read_ragged, read_stored, write_shard
from storage.format.objects import KeptObjects, Objects, open_objects
from storage.format.shards import Belonging, Commit, ShardKey, list_commits, stage_folder
from storage.format.specs import (
    FORMAT_VERSION,
    NOTICE_JSON,
    CacheSpec,
    DatasetSpec,
    NoticeSpec,
    TeacherSpec,
    ViewsSpec,
    read_spec,
)
from storage.format.stages import VIEWS_JSON
from storage.inputs import Stored, inputs_of
from storage.inputs.ragged import Ragged
from storage.language.tokenizer import TokenizerFile
from storage.options import is_name
from storage.views import PLAIN
from storage.views.check import Seen, check_augmented, check_shown, own_size

CACHE_JSON = "cache.json"


class Cache:
    """An open cache. Reads are thread-safe and see only committed shards; promises never change, and are read once."""

    def __init__(self, objects: Objects, spec: CacheSpec):
        self.objects = objects
        self.spec = spec
        self.promises = Promises(objects, spec)

    @property
    def url(self) -> str:
        return self.objects.url

    @property
    def id(self) -> str:
        """The cache's identity, made once when it was created."""
        return self.spec.id

    @property
    def unproven(self) -> str | None:
        """What this cache cannot prove of its shards, being of an earlier format; to be told once by every command."""
        if self.spec.format >= 3:
            return None
        return (
            f"note: {self.url} is of format {self.spec.format}: its shards do not say which cache and which dataset "
            "they are of, so one copied in from elsewhere may go unnoticed; those of a new cache (--as NAME) say it"
        )

    @property
    def notice(self) -> str | None:
        """What may be done with this cache, as whoever published it says; None: nothing is said."""
        try:
            return read_spec(self.objects, NOTICE_JSON, NoticeSpec).text
        except MissingObject:
            return None

    @classmethod
    def open(cls, url: str) -> Cache:
        """Return the cache at a folder or an object store's prefix.

        Raises:
            NotInCache: there is no cache.
            UnsupportedFormat: it was written by a later format.
        """
        objects = open_objects(url)
        try:
            return cls(objects, read_spec(objects, CACHE_JSON, CacheSpec))
        except MissingObject:
            listing = objects.list()
        there, do = "a folder without cache.json" if listing.objects or listing.folders else "nothing", "JOB.toml"
        if "://" not in url and Path(url).is_file():
            there, do = "a file, no folder", url if url.endswith(".toml") else do
        raise NotInCache(f"{url} is not a cache", found=there, expected="cache.json", do=f"cache build {do}")

    def kept_in(self, folder: Path, most_bytes: int) -> Cache:
        """Return the same cache, of which shards are kept below a folder of this machine once they were read.

        Args:
            folder: on a disk of this machine.
            most_bytes: of all that is kept there, of other caches too.
        """
        return Cache(KeptObjects(self.objects, self.id, folder, most_bytes), self.spec)

    @property
    def kept(self) -> KeptObjects | None:
        """Where its shards are kept on this machine, if they are."""
        return self.objects if isinstance(self.objects, KeptObjects) else None

    @classmethod
    def find(cls, url: str) -> Cache | None:
        """Return the cache at `url`, or None if nothing is there.

        Raises:
            BadRequest: the folder holds something that is not a cache.
        """
        try:
            return cls.open(url)
        except NotInCache:
            listing = open_objects(url).list()
        if CACHE_JSON in {info.path for info in listing.objects}:
            return cls.open(url)  # made by another builder since
        if listing.objects or listing.folders:
            raise BadRequest(
                f"{url} holds something that is not a cache",
                found=", ".join([*(o.path for o in listing.objects), *(f"{f}/" for f in listing.folders)][:5]),
                expected="an empty or absent folder, or a cache",
                do="name another folder in the job's `cache`",
            )
        return None

    @classmethod
    def create(cls, url: str, of: CacheSpec | None = None) -> Cache:
        """Return the cache at `url`, made now if nothing is there.

        Args:
            url: a folder or an object store's prefix.
            of: whose identity it is to have, being a copy; None: a new one.

        Raises:
            BadRequest: the folder holds something that is not a cache, or nothing can be written there.
        """
        if (found := cls.find(url)) is not None:
            found.objects.check_writable()
            return found
        open_objects(url).check_writable()
        spec = of or CacheSpec(
            format=FORMAT_VERSION,
            id=secrets.token_hex(16),  # random, not a digest: two caches of one job are two caches
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            created_by=f"stillroom {version('stillroom')}",
        )
        objects = open_objects(url)
        objects.create(CACHE_JSON, spec.to_json())  # another builder may have been first; then it is theirs
        if objects.create(CACHE_JSON, b"{}"):  # nobody could: it is there
            objects.delete(CACHE_JSON)
            raise BadRequest(
                f"{url} writes over what is there though it is asked not to, so two builders could mix their shards",
                found="cache.json written twice, both times as a new object",
                expected="a store with conditional writes (If-None-Match: *)",
                do="name another store or a folder in the job's `cache`, or let the store's operator update it",
            )
        return cls.open(url)  # what is there now, ours or theirs

    def catalogue(
        self,
        datasets: Iterable[str] | None = None,
        teachers: Collection[str] | None = None,
        *,
        with_plans: bool = False,
    ) -> Catalogue:
        """Return what the cache holds now, of some datasets and teachers or of all; see `Catalogue.read`."""
        return Catalogue.read(self.objects, self.spec, datasets, teachers, with_plans=with_plans)

    def samples(self, datasets: Iterable[str] | None = None, teachers: Collection[str] | None = None) -> Samples:
        """Return the per-sample tables of what the cache holds now, of some datasets and teachers or of all."""
        return Samples(self.catalogue(datasets, teachers))

    def dataset(self, name: str) -> DatasetSpec:
        """Return what is promised of a dataset. Raises NotInCache."""
        with contextlib.suppress(MissingObject):  # never there, or lost
            if is_name(name):  # any other might lead out of the cache
                return self.promises.dataset(name)
        raise no_dataset(self.objects, name)

    def tokenizer(self, dataset: str) -> TokenizerFile | None:
        """Return the tokenizer of a dataset; None if it has none.

        Raises:
            CorruptObject: the file is not the one that was promised.
        """
        return read_tokenizer(self.objects, self.dataset(dataset))

    def teacher(self, dataset: str, name: str) -> TeacherSpec:
        """Return what is promised of a teacher's targets. Raises NotInCache."""
        self.dataset(dataset)
        with contextlib.suppress(MissingObject):  # never there, or lost
            if is_name(name):
                return self.promises.teacher(dataset, name)
        raise no_teacher(self.objects, dataset, name)

    def views(self, dataset: str) -> ViewsSpec | None:
        """Return what is promised of a dataset's views, or None if no build has asked for any. Raises NotInCache."""
        self.dataset(dataset)
        try:
            return read_spec(self.objects, f"{dataset}/{VIEWS_JSON}", ViewsSpec)
        except MissingObject:
            return None

    def committed(self, dataset: str, teacher: str | None = None, view: str = PLAIN) -> set[int]:
        """Return the numbers of the shards that are whole, for the ingest (no teacher) or for a teacher's targets."""
        return set(list_commits(self.objects, stage_folder(dataset, teacher, view)))

    def read_inputs(self, dataset: str, shard: int) -> np.ndarray:
        """Return the model-ready inputs of a shard, (S, *input_shape); rows that `Samples` does not list are zeros."""
        return read_arrays(self.objects, self.commit(ShardKey(dataset, None, PLAIN, shard)), ["inputs"])["inputs"]

    def read_ragged(self, dataset: str, shard: int) -> Ragged:
        """Return the inputs of a shard whose rows are of their own length; quarantined ones have no items."""
        return read_ragged(self.objects, self.commit(ShardKey(dataset, None, PLAIN, shard)), ["inputs"])["inputs"]

    def read_rows(self, dataset: str, shard: int) -> Stored:
        """Return the inputs of a shard as they are stored: of one length, each of its own, or pictures as encoded.

        Not to be written to: they lie over the bytes that were read. Whoever shows some of them copies those.
        """
        return self.rows_of(self.commit(ShardKey(dataset, None, PLAIN, shard)))

    def rows_of(self, ingest: Commit) -> Stored:
        """Return the inputs of the shard that a commit is of, as `read_rows`."""
        kind = inputs_of(self.dataset(ingest.key.dataset))
        stored = read_stored(self.objects, ingest, kind.arrays, writeable=False)
        return kind.rows(stored, ingest.about, str(ingest.key))

    def read_labels(self, dataset: str, shard: int) -> Stored:
        """Return the labels of a shard of tokens, (S, L) int32: the next token at each position, −1 for none.

        Of rows of their own length there are as many as there are inputs.
        """
        return read_stored(self.objects, self.commit(ShardKey(dataset, None, PLAIN, shard)), ["labels"])["labels"]

    def read_targets(
        self, dataset: str, teacher: str, shard: int, view: str = PLAIN, names: Sequence[str] = ("logits",)
    ) -> dict[str, np.ndarray]:
        """Return encoded targets of a shard by array name, (S, …) each; the teacher's encoding decodes them.

        Of tokens they are flat, (P, …), where the teacher answered the P labelled positions of all rows alone.
        """
        found = read_stored(self.objects, self.commit(ShardKey(dataset, teacher, view, shard)), names)
        return {name: values.flat_T if isinstance(values, Ragged) else values for name, values in found.items()}

    def check_view(self, ingest: Commit, targets: Commit, inputs_S: Stored, views: ViewsSpec | None = None) -> None:
        """Check that a student would be shown what the teacher was shown (invariant 5), on the shard's first rows.

        Args:
            ingest: the commit of the inputs; with its table, if the targets are of a view that is not plain.
            targets: the commit of the targets.
            inputs_S: all rows, as stored.
            views: what the student is shown; None for plain inputs.

        Raises:
            StaleCache: it would not; the message says whether inputs, transforms or libraries differ.
        """
        key, about = targets.key, targets.about
        promise = targets.promised or self.promises.of_shard(key.dataset, key.teacher)
        assert promise.teacher is not None
        dataset, own = promise.dataset, own_size(promise.dataset, promise.teacher)
        seen = Seen(dataset, inputs_S, own)
        # of a view, the digest of what it was made from; plain inputs are their own
        found, expected = seen.plain(), about.get("inputs_fingerprint", about["view_fingerprint"])
        if found != expected or ingest.about["inputs_digest"] != about["inputs_digest"]:
            raise StaleCache(
                f"{self.url}: {key} was computed from other inputs than these",
                found=f"view fingerprint {found}",
                expected=f"view fingerprint {expected}",
                do=f"cache verify {self.url} --repair, then cache build",
            )
        if key.view != PLAIN:
            check_augmented(self.url, key, views, ingest.table, about, seen)
        elif own is not None:
            check_shown(self.url, key, dataset, about, seen.plain(own))

    def commit(self, key: ShardKey, *, with_table: bool = False) -> Commit:
        """Return the commit of one shard.

        Raises:
            IncompleteCache: it has none.
            CorruptObject: it is damaged, or of another cache, dataset or teacher.
        """
        return self.promises.checked(self.unchecked_commit(key, with_table=with_table))

    def unchecked_commit(self, key: ShardKey, *, with_table: bool = False) -> Commit:
        """Return the commit of one shard, whatever it belongs to. Raises IncompleteCache, CorruptObject."""
        try:
            data = self.objects.get(key.commit_path)
        except MissingObject:
            raise IncompleteCache(f"{self.url}: {key} is not built", do="cache build JOB.toml") from None
        return Commit.from_parquet(data, key.commit_path, with_table=with_table)

    def write_shard(
        self,
        key: ShardKey,
        *,
        rows: tuple[int, int],
        arrays: Mapping[str, np.ndarray | Ragged],
        table: pa.Table,
        about: dict[str, Any],
        uses: tuple[str, ...] = (),
    ) -> Commit | None:
        """Write a shard (`storage.format.committing.write_shard`), in the format and under the promises of this cache.

        Raises:
            MissingObject: its dataset or its teacher is not promised yet.
            BadRequest: the cache is of a format that cannot hold what it `uses`.
        """
        belonging, about = self._for_writing(key, about)
        if belonging is None and uses:
            raise BadRequest(
                f"{self.url} is of format {self.spec.format}, which cannot say that a class can never be",
                found=f"logits of −inf, or a thousand below the row's largest, in {key}",
                do="cache build JOB.toml --as NAME builds beside, in today's format",
            )
        return write_shard(
            self.objects, key, rows=rows, arrays=arrays, table=table, about=about, belonging=belonging, uses=uses
        )

    def copy_shard(self, source: Cache, commit: Commit, about: dict[str, Any]) -> Commit | None:
        """Copy a shard of another cache into this one, as `storage.format.committing.copy_shard` does."""
        belonging, about = self._for_writing(commit.key, about)
        return copy_shard(source.objects, commit, self.objects, about, belonging)

    def _for_writing(self, key: ShardKey, about: dict[str, Any]) -> tuple[Belonging | None, dict[str, Any]]:
        """Return what a commit is to say: in format 2 its teacher's promise alone, among its provenance."""
        belonging = self.promises.of(key.dataset, key.teacher)
        rest = {name: value for name, value in about.items() if name != "promise"}  # of a richer cache's format 2
        if self.spec.format >= 3:
            return belonging, rest
        return None, rest if key.teacher is None else rest | {"promise": belonging.promise}
