"""All that a cache holds is looked at once, and is of one moment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.cache import Cache, Catalogue, Samples
from storage.errors import IncompleteCache, NotInCache, TryAgain
from storage.format.objects import Listing, LocalObjects
from storage.format.rows import Segment, create_segment
from storage.format.specs import DatasetSpec, TeacherSpec, ViewsSpec, write_spec
from tests.counting import Counting
from tests.summaries import everything

LAST = "digits/cnn/plain/00002.parquet"


def test_each_folder_is_listed_once_and_each_promise_read_once(cache: Cache) -> None:
    objects = Counting(cache.objects)
    Catalogue.read(objects, cache.spec)
    stages = slice(3, 5)  # side by side
    assert objects.requests[:3] + sorted(objects.requests[stages]) + objects.requests[5:] == [
        ("list", ""),
        ("list", "digits"),
        ("list", "digits/cnn"),
        ("list", "digits/cnn/plain"),
        ("list", "digits/ingest"),
        ("list", "digits/plan"),
        ("get", "digits/plan/00000.parquet"),
        ("get", "digits/dataset.json"),
        ("get", "digits/cnn/teacher.json"),
    ]


def test_what_is_not_named_is_not_looked_at(cache: Cache, dataset_spec: DatasetSpec, teacher_spec: TeacherSpec) -> None:
    write_spec(cache.objects, "other/dataset.json", dataset_spec.model_copy(update={"name": "other"}), "job")
    write_spec(cache.objects, "digits/vit/teacher.json", teacher_spec.model_copy(update={"name": "vit"}), "job")
    objects = Counting(cache.objects)
    found = Catalogue.read(objects, cache.spec, ["digits"], ["cnn"])
    assert ([*found.datasets], [*found.teachers], len(objects.requests)) == (["digits"], [("digits", "cnn")], 8)


def test_a_view_more_is_one_listing_more(cache: Cache) -> None:
    write_spec(cache.objects, "digits/views.json", ViewsSpec(name="digits", seed=0, transforms=()), "job")
    asked = []
    for view in ("view-000", "view-001"):
        cache.objects.put(f"digits/cnn/{view}/00000.parquet", b"")
        objects = Counting(cache.objects)
        Catalogue.read(objects, cache.spec)
        asked.append(set(objects.requests))
    assert (asked[1] - asked[0], asked[0] - asked[1]) == ({("list", "digits/cnn/view-001")}, set())


def test_a_catalogue_answers_without_asking_the_store(cache: Cache) -> None:
    objects = Counting(cache.objects)
    found = Catalogue.read(objects, cache.spec)
    objects.requests.clear()
    answers = (
        found.dataset("digits").name,
        found.teacher("digits", "cnn").name,
        found.teacher_names("digits"),
        found.view_names("digits", "cnn"),
        found.shards("digits"),
        found.committed("digits"),
        found.committed("digits", "cnn", "view-000"),
    )
    expected = ("digits", "cnn", ["cnn"], ["plain"], [(0, 0, 4), (1, 4, 8), (2, 8, 10)], {0, 1, 2}, set())
    assert (answers, objects.requests) == (expected, [])


def test_a_catalogue_is_of_one_moment(cache: Cache, write_targets: Any) -> None:
    cache.objects.delete(LAST)
    found = cache.catalogue()
    write_targets(cache, 2)
    assert (found.committed("digits", "cnn"), cache.catalogue().committed("digits", "cnn")) == ({0, 1}, {0, 1, 2})


@pytest.mark.parametrize("name", ["cifar", "..", ".", "", "digits/cnn", "/etc"])
def test_what_is_no_dataset_is_told_with_those_there_are(cache: Cache, name: str) -> None:
    with pytest.raises(NotInCache) as caught:
        cache.catalogue([name]).dataset(name)
    assert (caught.value.what, caught.value.found) == (f"{cache.url} has no dataset {name}", "digits")


def test_what_is_no_teacher_is_told_with_those_there_are(cache: Cache) -> None:
    with pytest.raises(NotInCache) as caught:
        cache.catalogue(["digits"], ["vit"]).teacher("digits", "vit")
    assert (caught.value.what, caught.value.found) == (f"{cache.url} has no teacher vit for digits", "cnn")


# --- beside others that write


class Meanwhile(LocalObjects):
    """A folder where something happens just before a folder of it is listed for the first time."""

    def __init__(self, root: str | Path, folder: str, happens: Callable[[], Any]):
        super().__init__(root)
        self.folder, self.happens = folder, happens

    def list(self, folder: str = "") -> Listing:
        self._begin(folder)
        return super().list(folder)

    def versions(self, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
        self._begin(folder)
        return super().versions(folder, names)

    def _begin(self, folder: str) -> None:
        if folder == self.folder:
            self.folder = "-"
            self.happens()


@pytest.mark.parametrize("folder", ["", "digits", "digits/ingest", "digits/cnn", "digits/cnn/plain", "digits/plan"])
def test_a_cache_that_grows_while_it_is_looked_at_is_never_misread(
    cache: Cache, folder: str, segment: Callable[..., Segment], write_ingest: Any, write_targets: Any
) -> None:
    def grow() -> None:
        create_segment(cache.objects, "digits", 1, segment(("b", 0, 2)))
        write_ingest(cache, 3, 10, 12)
        write_targets(cache, 3)

    found = Catalogue.read(Meanwhile(cache.url, folder, grow), cache.spec)
    planned = {shard.shard for shard in found.shards("digits")}
    assert (planned, found.committed("digits") <= planned, found.committed("digits", "cnn") <= planned) == (
        {0, 1, 2, 3},
        True,
        True,
    )


@pytest.mark.parametrize("folder", ["digits/ingest", "digits/cnn", "digits/cnn/view-000"])
def test_targets_of_views_are_never_seen_without_their_promise(cache: Cache, folder: str) -> None:
    """They are promised after the dataset was listed, and built before the stage is."""
    (Path(cache.url) / "digits/cnn/view-000").mkdir()
    views = ViewsSpec(name="digits", seed=0, transforms=())

    def build() -> None:
        write_spec(cache.objects, "digits/views.json", views, "job")
        cache.objects.put("digits/cnn/view-000/00000.parquet", b"")

    found = Catalogue.read(Meanwhile(cache.url, folder, build), cache.spec)
    seen = (found.view_names("digits", "cnn"), found.views)
    may_be: list[Any] = [(["plain", "view-000"], {"digits": views})]
    may_be += [(["plain"], {})] * (folder == "digits/ingest")  # which is listed beside the others
    assert seen in may_be


# --- samples


def test_of_many_commits_a_few_are_held_at_once_and_their_tables_as_one_piece(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cache.samples().of("digits", ["cnn"])
    monkeypatch.setattr("storage.cache.catalogue.READ_AT_ONCE", 2)
    catalogue = cache.catalogue()
    assert [len(commits) for commits in catalogue.iter_commits(("digits", None, "plain"))] == [2, 1]
    table = Samples(catalogue).of("digits", ["cnn"])
    assert (table.equals(whole), table["row"].n_chunks()) == (True, 1)
    wanted = Samples(cache.catalogue()).of("digits", ["cnn"], ["label", "cnn_top"])
    assert wanted.equals(whole.select(wanted.columns))
    assert wanted.columns == ["row", "shard", "label", "cnn_top"]


def test_each_commit_is_read_once_for_any_number_of_questions(cache: Cache) -> None:
    objects = Counting(cache.objects)
    samples = Samples(Catalogue.read(objects, cache.spec))
    objects.requests.clear()
    for _ in range(3):
        samples.of("digits"), samples.of("digits", ["cnn"]), samples.quarantined("digits"), samples.duplicates("digits")
    folders = ("digits/ingest", "digits/cnn/plain")
    assert sorted(objects.requests) == sorted(("get", f"{at}/{i:05d}.parquet") for at in folders for i in range(3))


def test_a_shard_that_is_dropped_meanwhile_is_told(cache: Cache) -> None:
    samples = cache.samples()
    cache.objects.delete(LAST)
    with pytest.raises(TryAgain) as caught:
        samples.of("digits", ["cnn"])
    assert str(caught.value) == (
        f"TryAgain: {cache.url}: shards of digits/cnn/plain are gone\n"
        "  found     no shard 2, which a moment ago was committed\n"
        "  expected  a cache from which no build and no repair takes shards meanwhile\n"
        "  do        the same command again"
    )


def test_what_is_committed_after_the_catalogue_is_not_among_its_samples(cache: Cache, write_targets: Any) -> None:
    cache.objects.delete(LAST)
    samples = cache.samples()
    write_targets(cache, 2)
    assert samples.of("digits", ["cnn"])["cnn_top"].null_count() == 2


def test_samples_of_a_teacher_without_a_shard_are_refused(cache: Cache) -> None:
    for shard in range(3):
        cache.objects.delete(f"digits/cnn/plain/{shard:05d}.parquet")
    with pytest.raises(IncompleteCache, match="nothing of digits/cnn/plain is built"):
        cache.samples().of("digits", ["cnn"])


# --- the ledger


def test_compacting_the_ledger_of_one_dataset_keeps_what_it_holds_of_others(
    cache: Cache, dataset_spec: DatasetSpec, segment: Callable[..., Segment]
) -> None:
    write_spec(cache.objects, "other/dataset.json", dataset_spec.model_copy(update={"name": "other"}), "job")
    create_segment(cache.objects, "other", 0, segment(("a", 0, 4)))
    cache.catalogue().ledger().compact()
    held = cache.objects.get(LAST)
    cache.objects.delete(LAST)
    cache.objects.put(LAST, held)  # of another version
    whole = everything(cache.catalogue().ledger())
    cache.catalogue(["other"]).ledger().compact()
    cache.catalogue(["digits"]).ledger().compact()
    ledger = cache.catalogue().ledger()
    assert (ledger.new, everything(ledger).equals(whole)) == (0, True)
