"""The only way in for both sides."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.cache import Cache
from storage.errors import (
    BadRequest,
    CorruptObject,
    IncompleteCache,
    MissingObject,
    NotInCache,
    StaleCache,
)
from storage.format.shards import Commit, ShardKey
from storage.format.specs import DatasetSpec, TeacherSpec, write_spec
from tests.teacher_cache.toys import build, write_job


def test_an_open_cache_is_the_one_that_was_created(tmp_path: Path) -> None:
    created = Cache.create(str(tmp_path / "c"))
    assert (Cache.open(created.url).spec, len(created.id)) == (created.spec, 32)


def test_creating_a_cache_again_opens_it(tmp_path: Path) -> None:
    assert Cache.create(str(tmp_path)).id == Cache.create(str(tmp_path)).id


def test_two_caches_have_two_identities(tmp_path: Path) -> None:
    assert Cache.create(str(tmp_path / "a")).id != Cache.create(str(tmp_path / "b")).id


def test_the_format_comes_first_in_cache_json(tmp_path: Path) -> None:
    assert Cache.create(str(tmp_path)).objects.get("cache.json").startswith(b'{\n  "format": 3,')


def test_a_cache_lives_on_an_object_store(bucket: str, dataset_spec: DatasetSpec) -> None:
    cache = Cache.create(bucket)
    write_spec(cache.objects, "digits/dataset.json", dataset_spec, "job.toml")
    assert (Cache.open(bucket).id, Cache.open(bucket).dataset("digits")) == (cache.id, dataset_spec)


@pytest.mark.parametrize(("files", "found"), [([], "nothing"), (["notes.txt"], "a folder without cache.json")])
def test_what_is_no_cache_is_not_opened(tmp_path: Path, files: list[str], found: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(NotInCache) as caught:
        Cache.open(str(tmp_path))
    assert (caught.value.what, caught.value.found) == (f"{tmp_path} is not a cache", found)


def test_a_folder_of_something_else_is_not_made_a_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(b"")
    (tmp_path / "figures").mkdir()
    with pytest.raises(BadRequest) as caught:
        Cache.create(str(tmp_path))
    assert (caught.value.what, caught.value.found, caught.value.do) == (
        f"{tmp_path} holds something that is not a cache",
        "thesis.tex, figures/",
        "name another folder in the job's `cache`",
    )


def test_a_file_is_not_made_a_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadRequest, match="cannot be written"):
        Cache.create(str(tmp_path / "file"))


def test_a_cache_says_what_it_holds(cache: Cache, dataset_spec: DatasetSpec, teacher_spec: TeacherSpec) -> None:
    assert (
        [*cache.catalogue().datasets],
        cache.catalogue().teacher_names("digits"),
        cache.dataset("digits"),
        cache.teacher("digits", "cnn"),
    ) == (
        ["digits"],
        ["cnn"],
        dataset_spec,
        teacher_spec,
    )


def test_an_unknown_dataset_is_told_with_those_there_are(cache: Cache) -> None:
    with pytest.raises(NotInCache) as caught:
        cache.dataset("cifar")
    assert (caught.value.what, caught.value.found) == (f"{cache.url} has no dataset cifar", "digits")


def test_an_unknown_teacher_is_told_with_those_there_are(cache: Cache) -> None:
    with pytest.raises(NotInCache) as caught:
        cache.teacher("digits", "vit")
    assert (caught.value.what, caught.value.found) == (f"{cache.url} has no teacher vit for digits", "cnn")


@pytest.mark.parametrize("name", ["..", ".", "", "digits/cnn", "/etc"])
def test_a_name_that_is_a_path_is_no_dataset(cache: Cache, name: str) -> None:
    with pytest.raises(NotInCache):
        cache.dataset(name)


def test_the_planned_shards_are_known(cache: Cache) -> None:
    assert cache.catalogue().shards("digits") == [(0, 0, 4), (1, 4, 8), (2, 8, 10)]


def test_what_is_committed_is_known_for_each_stage(cache: Cache) -> None:
    cache.objects.delete("digits/cnn/plain/00001.parquet")
    assert (cache.committed("digits"), cache.committed("digits", "cnn"), cache.committed("digits", "vit")) == (
        {0, 1, 2},
        {0, 2},
        set(),
    )


# --- samples


def test_samples_lists_every_readable_row_in_order(cache: Cache) -> None:
    samples = cache.samples().of("digits")
    assert (samples["row"].to_list(), samples["label"].to_list()) == (
        [0, 1, 2, 4, 5, 6, 7, 8, 9],
        [0, 1, 2, 1, 2, 0, 1, 2, 0],
    )


def test_samples_says_where_each_row_lies(cache: Cache) -> None:
    assert cache.samples().of("digits").select("row", "shard", "sample_id", "split").row(4) == (
        5,
        1,
        "digits:5",
        "validation",
    )


def test_the_columns_of_samples_have_fixed_types(cache: Cache) -> None:
    assert {name: str(kind) for name, kind in cache.samples().of("digits").schema.items()} == {
        "row": "Int64",
        "shard": "Int64",
        "sample_id": "String",
        "label": "Int64",
        "split": "String",
        "payload_digest": "String",
        "label_digest": "String",
    }


def test_a_row_is_visible_if_and_only_if_its_commit_is(cache: Cache) -> None:
    cache.objects.delete("digits/ingest/00001.parquet")  # its arrays are still there
    assert cache.samples().of("digits")["row"].to_list() == [0, 1, 2, 8, 9]


def test_samples_adds_what_a_teacher_says(cache: Cache) -> None:
    samples = cache.samples().of("digits", ["cnn"])
    tops = [cache.read_targets("digits", "cnn", shard)["logits"].argmax(axis=1) for shard in range(3)]
    assert samples["cnn_top"].to_list() == np.delete(np.concatenate(tops), 3).tolist()


def test_a_teacher_is_null_where_its_shard_is_missing(cache: Cache) -> None:
    cache.objects.delete("digits/cnn/plain/00001.parquet")
    samples = cache.samples().of("digits", ["cnn"])
    assert [value is None for value in samples["cnn_entropy"]] == [False] * 3 + [True] * 4 + [False] * 2


def test_quarantined_rows_are_listed_with_their_reason(cache: Cache) -> None:
    assert cache.samples().quarantined("digits").rows() == [(3, "digits:3", "OSError: truncated")]


def test_samples_of_nothing_say_how_to_go_on(cache: Cache) -> None:
    for shard in range(3):
        cache.objects.delete(f"digits/ingest/{shard:05d}.parquet")
    with pytest.raises(IncompleteCache) as caught:
        cache.samples().of("digits")
    assert (caught.value.what, caught.value.do) == (
        f"{cache.url}: nothing of digits/ingest is built",
        "cache build JOB.toml",
    )


# --- arrays


def test_inputs_of_a_shard_have_the_promised_shape(cache: Cache) -> None:
    inputs_S = cache.read_inputs("digits", 2)
    assert (inputs_S.shape, inputs_S.dtype) == ((2, 1, 2, 2), np.uint8)


def test_rows_are_held_once_while_they_are_read(tmp_path: Path) -> None:
    """Whoever shows some of them copies those: a shard of photographs is a hundred megabytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 512, 512), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", inputs=pixels, labels=np.arange(4) % 2)
    dataset = '[[dataset]]\nname = "images"\nkind = "arrays"\npath = "images.npz"\nclasses = ["a", "b"]'
    build(write_job(tmp_path, dataset))
    cache = Cache.open(str(tmp_path / "cache"))
    cache.read_rows("images", 0)  # what is imported and looked up once
    tracemalloc.start()
    try:
        rows_S = cache.read_rows("images", 0)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(np.asarray(rows_S), pixels)
    assert most_bytes < 1.5 * pixels.nbytes


def test_targets_are_logits_unless_others_are_named(cache: Cache) -> None:
    assert list(cache.read_targets("digits", "cnn", 0)) == ["logits"]


def test_features_are_read_by_name(cache: Cache) -> None:
    assert cache.read_targets("digits", "cnn", 0, names=["feature/last"])["feature/last"].shape == (4, 5)


def test_a_shard_that_is_not_built_is_named(cache: Cache) -> None:
    with pytest.raises(IncompleteCache) as caught:
        cache.read_targets("digits", "cnn", 9)
    assert caught.value.what == f"{cache.url}: digits/cnn/plain/00009 is not built"


def test_a_missing_object_of_a_committed_shard_is_an_error(cache: Cache) -> None:
    commit = cache.commit(ShardKey("digits", None, "plain", 0))
    cache.objects.delete(commit.group)
    with pytest.raises(MissingObject):
        cache.read_inputs("digits", 0)


def test_swapped_commits_are_noticed(cache: Cache) -> None:
    cache.objects.put("digits/ingest/00000.parquet", cache.objects.get("digits/ingest/00001.parquet"))
    with pytest.raises(CorruptObject) as caught:
        cache.samples().of("digits")
    assert caught.value.found == "it is the commit of digits/ingest/00001"


# --- the very tensor that the teacher saw


def commits(cache: Cache, shard: int) -> tuple[Commit, Commit]:
    """Return those of a shard's inputs, and of its targets."""
    ingest, targets = (cache.commit(ShardKey("digits", teacher, "plain", shard)) for teacher in (None, "cnn"))
    return ingest, targets


def test_the_inputs_that_the_teacher_saw_pass(cache: Cache) -> None:
    cache.check_view(*commits(cache, 0), cache.read_inputs("digits", 0))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :, ::-1],
        lambda x: x[::-1],
        lambda x: x.astype(np.float32),
        lambda x: x ^ np.uint8(1),
        lambda x: x[1:],
    ],
    ids=["flipped", "reordered", "another dtype", "one bit", "shifted"],
)
def test_other_inputs_are_refused(cache: Cache, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(StaleCache) as caught:
        cache.check_view(*commits(cache, 0), change(cache.read_inputs("digits", 0)))
    assert caught.value.what == f"{cache.url}: digits/cnn/plain/00000 was computed from other inputs than these"


def test_inputs_that_were_ingested_again_and_differ_are_refused(
    cache: Cache, write_ingest: Callable[..., Commit]
) -> None:
    shown = cache.read_inputs("digits", 1)
    cache.objects.delete("digits/ingest/00001.parquet")
    write_ingest(cache, 1, 4, 8, seed=1)
    with pytest.raises(StaleCache):
        cache.check_view(*commits(cache, 1), shown)


def test_many_threads_read_the_same(cache: Cache) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def read(shard: int) -> list[Any]:
        return cache.read_inputs("digits", shard % 3).tolist()  # type: ignore[no-any-return]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(24))) == [read(shard) for shard in range(24)]
