"""A promise that is lost is told wherever a cache is looked at; a folder without data is innocent."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.cache import Cache
from storage.cache.query import query_samples
from storage.cache.status import read_info, read_status
from storage.cache.verify import verify
from storage.errors import MissingObject
from storage.format.objects import Listing, LocalObjects
from storage.format.rows import Segment, create_segment
from storage.format.specs import DatasetSpec, TeacherSpec, write_spec
from storage.format.stages import list_datasets, list_stages

LOOKS: dict[str, Callable[[Cache], Any]] = {
    "status": lambda cache: read_status(cache.catalogue()),
    "info": lambda cache: read_info(cache.catalogue()),
    "verify": verify,
    "query": lambda cache: query_samples(cache, "SELECT * FROM samples"),
    "teacher": lambda cache: cache.teacher("digits", "cnn"),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("folder", ["digits", "digits/cnn"])
def test_a_lost_promise_is_told(cache: Cache, look: str, folder: str) -> None:
    path = f"{folder}/{'teacher' if '/' in folder else 'dataset'}.json"
    cache.objects.delete(path)
    with pytest.raises(MissingObject) as caught:
        LOOKS[look](cache)
    assert (caught.value.what, caught.value.do) == (
        f"{cache.url}/{path} is not there, but what was built under its promise is",
        f"restore it from a copy of the cache; or delete {cache.url}/{folder}, and cache build JOB.toml makes it again",
    )


@pytest.mark.parametrize(
    "path",
    [
        "digits/plan/00000.parquet",
        "digits/ingest/00000-0123abcd.zarr.zip",
        "digits/ingest/00000-0123abcd.zarr/zarr.json",
        "digits/cnn/teacher.json",
    ],
)
def test_any_data_of_a_dataset_misses_its_promise(objects: LocalObjects, path: str) -> None:
    objects.put(path, b"")
    with pytest.raises(MissingObject):
        list_stages(objects)


@pytest.mark.parametrize("path", ["00000-0123abcd.zarr.zip", "00000-0123abcd.zarr/zarr.json"])
def test_an_attempt_of_a_teacher_misses_its_promise(objects: LocalObjects, path: str) -> None:
    objects.put("digits/dataset.json", b"")
    objects.put(f"digits/cnn/plain/{path}", b"")
    with pytest.raises(MissingObject):
        list_stages(objects)


def test_folders_without_data_are_innocent(objects: LocalObjects) -> None:
    for folder in ("left/plan", "left/ingest/00000-0123abcd.zarr", "notes/mine", "d/cnn/plain", "d/notes/mine"):
        (Path(objects.url) / folder).mkdir(parents=True)
    objects.put("notes/mine/todo.txt", b"")
    objects.put("d/notes/mine/todo.txt", b"")
    objects.put("d/dataset.json", b"")
    assert list_stages(objects) == [("d", None, "plain")]


def test_a_dataset_that_begins_while_it_is_looked_for_is_there(
    objects: LocalObjects,
    monkeypatch: pytest.MonkeyPatch,
    dataset_spec: DatasetSpec,
    segment: Callable[..., Segment],
) -> None:
    inner = LocalObjects.list
    (Path(objects.url) / "digits" / "plan").mkdir(parents=True)

    def begin_after(self: LocalObjects, folder: str = "") -> Listing:
        listing = inner(self, folder)
        if folder == "digits":
            write_spec(objects, "digits/dataset.json", dataset_spec, "job.toml")
            create_segment(objects, "digits", 0, segment(("a", 0, 4)))
        return listing

    monkeypatch.setattr(LocalObjects, "list", begin_after)
    assert list_datasets(objects) == ["digits"]


# --- plans


@pytest.mark.parametrize(
    "look",
    [LOOKS["status"], LOOKS["info"], LOOKS["query"], lambda cache: cache.catalogue(["digits"])],
    ids=["status", "info", "query", "plan"],
)
def test_a_lost_last_segment_is_told(
    cache: Cache, segment: Callable[..., Segment], write_ingest: Any, look: Callable[[Cache], Any]
) -> None:
    create_segment(cache.objects, "digits", 1, segment(("b", 0, 2)))
    write_ingest(cache, 3, 10, 12)
    look(cache)
    cache.objects.delete("digits/plan/00001.parquet")
    with pytest.raises(MissingObject) as caught:
        look(cache)
    assert (caught.value.found, caught.value.expected) == (
        "shard 3 is committed, 3 shards are planned",
        "digits/plan/00001.parquet",
    )


def test_a_shard_of_targets_alone_tells_a_lost_segment_too(cache: Cache) -> None:
    cache.objects.put("digits/cnn/plain/00003.parquet", cache.objects.get("digits/cnn/plain/00002.parquet"))
    with pytest.raises(MissingObject):
        cache.catalogue()


def test_looking_for_a_lost_segment_reads_no_commit(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    inner = LocalObjects.get
    monkeypatch.setattr(LocalObjects, "get", lambda self, path: (read.append(path), inner(self, path))[1])
    cache.catalogue()
    assert read == ["digits/plan/00000.parquet", "digits/dataset.json", "digits/cnn/teacher.json"]


def test_a_teacher_that_has_begun_nothing_is_promised(cache: Cache, teacher_spec: TeacherSpec) -> None:
    later = teacher_spec.model_copy(update={"name": "vit"})
    write_spec(cache.objects, "digits/vit/teacher.json", later, "job.toml")
    assert read_status(cache.catalogue()).select("teacher", "rows_missing").rows() == [
        ("ingest", 0),
        ("cnn", 0),
        ("vit", 10),
    ]


def test_stages_are_listed_side_by_side(cache: Cache) -> None:
    both = threading.Barrier(2, timeout=60)  # of a dataset, ingest and targets

    class Waiting(LocalObjects):
        def versions(self, folder: str, names: re.Pattern[str]) -> Iterator[tuple[str, str]]:
            both.wait()
            return super().versions(folder, names)

    assert list_stages(Waiting(cache.url)) == [("digits", None, "plain"), ("digits", "cnn", "plain")]
