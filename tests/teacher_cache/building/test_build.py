from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import (
    BadRequest,
    BadTeacher,
    BadWeights,
    MissingSource,
    RowsMissing,
    StaleCache,
    StillroomError,
    TryAgain,
)
from teacher_cache.building.build import run_build
from teacher_cache.building.prepared import BuildRequest, PreparedBuild
from teacher_cache.building.runners import run_inline
from teacher_cache.building.stages import BuildReport
from teacher_cache.building.survey import prepare_build
from tests.summaries import everything
from tests.teacher_cache.conftest import Built
from tests.teacher_cache.toys import (
    Silent,
    build,
    contents,
    digits,
    teacher_section,
    write_digits,
    write_job,
    write_teacher,
)


def rebuilt(folder: Path, *sections: str) -> BuildReport:
    return build(write_job(folder, *sections))


def test_a_build_with_nothing_missing_computes_nothing(built: Built) -> None:
    report = build(built.job)
    assert (report.built, report.present, report.exit_code) == (0, 6, 0)


def test_partitions_together_complete_a_cache(built: Built, tmp_path: Path) -> None:
    reports = [build(built.job, cache=str(tmp_path / "cache"), part=(i, 3)) for i in (2, 0, 1)]
    assert [(report.built, report.present) for report in reports] == [(2, 0)] * 3
    assert contents(tmp_path / "cache") == contents(built.folder / "cache")


def test_two_datasets_and_two_teachers_are_each_built(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    first = write_digits(tmp_path, 20)
    second = first.replace('name = "digits"', 'name = "other"')
    sections = [teacher_section("a"), teacher_section("b", extra='datasets = ["other"]')]
    assert rebuilt(tmp_path, first, second, *sections).built == 2 * (2 + 3)
    cache = Cache.open(str(tmp_path / "cache"))
    assert (cache.catalogue().teacher_names("digits"), cache.catalogue().teacher_names("other")) == (["a"], ["a", "b"])


def test_a_teacher_added_later_costs_only_itself(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    dataset = write_digits(tmp_path, 32)
    rebuilt(tmp_path, dataset, teacher_section("a"))
    report = rebuilt(tmp_path, dataset, teacher_section("a"), teacher_section("b"))
    assert (report.built, report.present) == (2, 4)


@pytest.fixture
def stale(tmp_path: Path) -> Callable[..., tuple[StaleCache, bool]]:
    """Build, change something, build again; return the error and whether the cache is as it was."""

    def change(section: str = "", dataset: str = "", act: Callable[[Path], Any] = str) -> Any:
        write_teacher(tmp_path)
        source = write_digits(tmp_path, 20)
        rebuilt(tmp_path, source, teacher_section())
        before = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}
        act(tmp_path)
        with pytest.raises(StaleCache) as caught:
            rebuilt(tmp_path, dataset or source, section or teacher_section())
        after = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}
        return caught.value, before == after

    return change


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (teacher_section(extra='autocast = "bf16"'), "model.autocast"),
        (teacher_section(extra='encoding = { kind = "dense", dtype = "fp16" }'), "encoding.dtype"),
        (teacher_section(extra="mean = [0.5]\nstd = [0.5]"), "model.mean, model.std"),
        (teacher_section(seconds=0.1), "model.arguments.seconds"),
        (teacher_section(extra='features.f = { layer = "conv" }'), "features.f"),
        (teacher_section().replace(":build", ":broken"), "model.function"),
    ],
)
def test_a_teacher_that_the_job_changed_is_named_field_by_field(
    stale: Callable[..., tuple[StaleCache, bool]], section: str, field: str
) -> None:
    error, untouched = stale(section=section)
    assert error.what.endswith(f"cache was built by another job: digits/toy/teacher.json differs in {field}")
    assert untouched


@pytest.mark.parametrize(
    ("act", "field"),
    [
        (lambda folder: write_teacher(folder, seed=1), "model.weights"),
        (lambda folder: (folder / "toy.py").write_text((folder / "toy.py").read_text() + "more = 1\n"), "model.code"),
    ],
    ids=["weights", "code"],
)
def test_a_teacher_whose_files_changed_is_named_field_by_field(
    stale: Callable[..., tuple[StaleCache, bool]], act: Callable[[Path], Any], field: str
) -> None:
    error, untouched = stale(act=act)
    assert error.what.endswith(f"digits/toy/teacher.json differs in {field}")
    assert untouched


def test_changed_preprocessing_is_named(tmp_path: Path) -> None:
    dataset = image_folder(tmp_path, range(4))
    rebuilt(tmp_path, dataset)
    with pytest.raises(StaleCache, match=r"digits/dataset.json differs in source.size"):
        rebuilt(tmp_path, dataset + "size = 16\n")


def test_a_changed_split_is_named(stale: Callable[..., tuple[StaleCache, bool]]) -> None:
    dataset = '[[dataset]]\nname = "digits"\nkind = "arrays"\npath = "digits.npz"\nvalidation = 0.5\n'
    error, untouched = stale(dataset=dataset + f"classes = {[str(i) for i in range(10)]}\n")
    assert "source.validation" in error.what
    assert untouched


def save(folder: Path, inputs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    np.savez(folder / "digits.npz", inputs=inputs, labels=labels)


def change_sample(folder: Path) -> None:
    inputs, labels = digits(20)
    inputs[7] = 255 - inputs[7]
    save(folder, inputs, labels)


def change_label(folder: Path) -> None:
    inputs, labels = digits(20)
    labels[7] = 9 - labels[7]
    save(folder, inputs, labels)


@pytest.mark.parametrize(("act", "what"), [(change_sample, "other content"), (change_label, "another label")])
def test_a_changed_sample_is_named(
    stale: Callable[..., tuple[StaleCache, bool]], act: Callable[[Path], Any], what: str
) -> None:
    error, untouched = stale(act=act)
    assert error.found == f"1 samples with {what}: digits.npz:7"
    assert untouched


def test_samples_that_are_gone_are_named(stale: Callable[..., tuple[StaleCache, bool]]) -> None:
    error, untouched = stale(act=lambda folder: write_digits(folder, 19))
    assert error.found == "1 files gone or shorter: digits.npz"
    assert untouched


def test_another_name_builds_beside_and_leaves_the_old_cache_alone(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    dataset = write_digits(tmp_path, 20)
    rebuilt(tmp_path, dataset, teacher_section())
    before = contents(tmp_path / "cache")
    write_teacher(tmp_path, seed=1)
    job = write_job(tmp_path, dataset, teacher_section())
    assert build(job, cache=str(tmp_path / "cache-2")).exit_code == 0
    after = contents(tmp_path / "cache-2")
    assert contents(tmp_path / "cache") == before
    assert after["digits/ingest/00000"] == before["digits/ingest/00000"]
    assert after["digits/toy/plain/00000"] != before["digits/toy/plain/00000"]


def image_folder(folder: Path, numbers: range, extra: str = "") -> str:
    """Write digits as images of two classes; return their `[[dataset]]`."""
    inputs, _ = digits(numbers.stop)
    for i in numbers:
        path = folder / "images" / ("even" if i % 2 == 0 else "odd") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(inputs[i, 0]).save(path)
    return (
        '[[dataset]]\nname = "digits"\nkind = "image_folder"\npath = "images"\nchannels = 1\nrows_per_shard = 4\n'
        f"max_quarantined = 0.5\n{extra}"
    )


def parquet_images(folder: Path, counts: dict[str, int]) -> str:
    """Write digits as Parquet files of so many rows; return their `[[dataset]]`."""
    inputs, labels = digits(40)
    (folder / "parquet").mkdir(exist_ok=True)
    for name, count in counts.items():
        images = []
        for i in range(count):
            Image.fromarray(inputs[i, 0]).save(folder / "one.png")
            images.append({"bytes": (folder / "one.png").read_bytes(), "path": None})
        table = pa.table({"image": pa.array(images), "label": pa.array(labels[:count], pa.int64())})
        pq.write_table(table, folder / "parquet" / f"{name}.parquet")
    return (
        '[[dataset]]\nname = "digits"\nkind = "parquet_images"\npath = "parquet"\nchannels = 1\nrows_per_shard = 4\n'
        f"classes = {[str(i) for i in range(10)]}\n"
    )


@pytest.mark.parametrize("kind", ["image_folder", "parquet", "a parquet file rewritten with more rows"])
def test_a_dataset_that_grew_costs_only_its_new_rows(tmp_path: Path, kind: str) -> None:
    classes = 2 if kind == "image_folder" else 10
    write_teacher(tmp_path, classes=classes)
    make: dict[str, tuple[Callable[[], str], Callable[[], str]]] = {
        "image_folder": (lambda: image_folder(tmp_path, range(10)), lambda: image_folder(tmp_path, range(10, 14))),
        "parquet": (lambda: parquet_images(tmp_path, {"a": 10}), lambda: parquet_images(tmp_path, {"0": 4})),
        "a parquet file rewritten with more rows": (
            lambda: parquet_images(tmp_path, {"a": 10}),
            lambda: parquet_images(tmp_path, {"a": 14}),
        ),
    }
    first, second = make[kind]
    rebuilt(tmp_path, first(), teacher_section(classes=classes))
    before = contents(tmp_path / "cache")
    report = rebuilt(tmp_path, second(), teacher_section(classes=classes))
    after = contents(tmp_path / "cache")
    assert (report.built, report.rows, report.present) == (2, 8, 6)
    assert {key: after[key] for key in before} == before
    assert Cache.open(str(tmp_path / "cache")).samples().of("digits")["row"].to_list() == list(range(14))


def test_rows_of_a_grown_dataset_keep_their_samples(tmp_path: Path) -> None:
    rebuilt(tmp_path, image_folder(tmp_path, range(10)))
    before = Cache.open(str(tmp_path / "cache")).samples().of("digits")
    rebuilt(tmp_path, image_folder(tmp_path, range(10, 20)))
    after = Cache.open(str(tmp_path / "cache")).samples().of("digits")
    assert after.head(10).equals(before)
    assert after["sample_id"].n_unique() == 20


def test_a_new_class_is_named(tmp_path: Path) -> None:
    dataset = image_folder(tmp_path, range(4))
    rebuilt(tmp_path, dataset)
    shutil.copytree(tmp_path / "images/odd", tmp_path / "images/another")
    with pytest.raises(StaleCache, match=r"differs in classes"):
        rebuilt(tmp_path, dataset)


def test_touched_files_that_did_not_change_cost_nothing(tmp_path: Path) -> None:
    dataset = image_folder(tmp_path, range(8))
    rebuilt(tmp_path, dataset)
    before = contents(tmp_path / "cache")
    for path in (tmp_path / "images").rglob("*.png"):
        os.utime(path, (1, 1))
    assert rebuilt(tmp_path, dataset).built == 0
    assert contents(tmp_path / "cache") == before
    assert Cache.open(str(tmp_path / "cache")).catalogue(with_plans=True).plans["digits"].num_rows == 8


def test_a_touched_file_is_read_only_once(tmp_path: Path) -> None:
    dataset = image_folder(tmp_path, range(8))
    rebuilt(tmp_path, dataset)
    os.utime(tmp_path / "images/odd/001.png", (1, 1))
    rebuilt(tmp_path, dataset)
    cache = Cache.open(str(tmp_path / "cache"))
    num_segments = len(cache.catalogue(with_plans=True).plans["digits"].segments)
    rebuilt(tmp_path, dataset)
    assert len(cache.catalogue(with_plans=True).plans["digits"].segments) == num_segments == 2


def test_a_mended_image_is_built_again_with_its_teachers(tmp_path: Path) -> None:
    dataset = image_folder(tmp_path, range(12))
    good = (tmp_path / "images/odd/003.png").read_bytes()
    (tmp_path / "images/odd/003.png").write_bytes(good[:40])
    write_teacher(tmp_path, classes=2)
    assert rebuilt(tmp_path, dataset, teacher_section(classes=2)).exit_code == 3
    assert rebuilt(tmp_path, dataset, teacher_section(classes=2)).exit_code == 3  # nothing to do, still missing

    (tmp_path / "images/odd/003.png").write_bytes(good)
    report = rebuilt(tmp_path, dataset, teacher_section(classes=2))
    assert (report.exit_code, report.built, report.quarantined) == (0, 2, {})
    cache = Cache.open(str(tmp_path / "cache"))
    table = cache.samples().of("digits", ["toy"])
    assert (table.height, table.null_count().sum_horizontal().sum()) == (12, 0)
    assert verify(cache).bad == ()


@pytest.mark.parametrize("num_deletes", [0, 1])
def test_a_kill_while_mending_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_deletes: int) -> None:
    """Killed between the deletes of a mended shard and the record of its file, the next build sees it again."""
    from storage.format.objects import LocalObjects

    dataset = image_folder(tmp_path, range(12))
    good = (tmp_path / "images/odd/003.png").read_bytes()
    (tmp_path / "images/odd/003.png").write_bytes(good[:40])
    write_teacher(tmp_path, classes=2)
    rebuilt(tmp_path, dataset, teacher_section(classes=2))
    (tmp_path / "images/odd/003.png").write_bytes(good)
    delete, deleted = LocalObjects.delete, list[str]()

    def kill(self: LocalObjects, path: str) -> None:
        if len(deleted) == num_deletes:
            raise KeyboardInterrupt
        deleted.append(path)
        delete(self, path)

    monkeypatch.setattr(LocalObjects, "delete", kill)
    with pytest.raises(KeyboardInterrupt):
        rebuilt(tmp_path, dataset, teacher_section(classes=2))
    monkeypatch.undo()
    rebuilt(tmp_path, dataset, teacher_section(classes=2))
    cache = Cache.open(str(tmp_path / "cache"))
    assert cache.samples().of("digits", ["toy"]).null_count().sum_horizontal().sum() == 0
    assert cache.samples().of("digits").height == 12
    assert verify(cache).bad == ()


def test_too_many_unreadable_images_stop_the_build_and_keep_what_is_committed(tmp_path: Path) -> None:
    dataset = image_folder(tmp_path, range(12)).replace("max_quarantined = 0.5", "max_quarantined = 0.1")
    for name in ("009", "011"):
        (tmp_path / f"images/odd/{name}.png").write_bytes(b"broken")
    with pytest.raises(BadRequest) as caught:
        rebuilt(tmp_path, dataset)
    assert caught.value.found is not None
    assert caught.value.found.startswith("2 of 12 rows so far, such as\nodd/009.png: UnidentifiedImageError")
    assert Cache.open(str(tmp_path / "cache")).committed("digits") >= {0, 2}


def test_the_limit_of_unreadable_images_holds_for_the_next_run_too(tmp_path: Path) -> None:
    dataset = image_folder(tmp_path, range(12)).replace("max_quarantined = 0.5", "max_quarantined = 0.1")
    for name in ("009", "011"):
        (tmp_path / f"images/odd/{name}.png").write_bytes(b"broken")
    for _ in range(3):
        with pytest.raises(BadRequest, match="too many samples of digits cannot be read"):
            rebuilt(tmp_path, dataset)
    assert Cache.open(str(tmp_path / "cache")).committed("digits", "toy") == set()


def test_ids_that_two_shards_share_are_refused(tmp_path: Path) -> None:
    inputs, labels = digits(8)
    (tmp_path / "twice.py").write_text(TWICE)
    np.savez(tmp_path / "digits.npz", inputs=inputs, labels=labels)
    dataset = '[[dataset]]\nname = "digits"\nkind = "factory"\nfactory = "twice.py:load"\nrows_per_shard = 4\n'
    with pytest.raises(BadRequest, match="gives one id to several samples") as caught:
        build(write_job(tmp_path, dataset + f"arguments = {{ path = '{tmp_path}/digits.npz' }}\n"))
    assert caught.value.found == "0, 1, 2, 3"


TWICE = """
import numpy as np


class Twice:
    classes = [str(i) for i in range(10)]

    def __init__(self, path):
        self.arrays = dict(np.load(path))

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {"input": self.arrays["inputs"][i], "label": int(self.arrays["labels"][i]), "id": str(i % 4)}


def load(path):
    return Twice(path)
"""


@pytest.mark.parametrize("where", ["build", "forward"])
def test_a_teacher_that_exits_does_not_end_the_build_as_if_it_were_done(tmp_path: Path, where: str) -> None:
    (tmp_path / "exits.py").write_text(EXITS)
    teacher = f'[[teacher]]\nname = "exits"\nfactory = "exits.py:build"\narguments = {{ where = "{where}" }}\n'
    with pytest.raises(BadTeacher) as caught:
        build(write_job(tmp_path, write_digits(tmp_path, 20), teacher))
    assert caught.value.found == "SystemExit: 0"


EXITS = """
import sys
from torch import nn


class Exits(nn.Module):
    def forward(self, x):
        sys.exit(0)


def build(where):
    return sys.exit(0) if where == "build" else Exits()
"""


def test_as_many_unreadable_images_as_the_job_allows_do_not_stop_it(tmp_path: Path) -> None:
    dataset = image_folder(tmp_path, range(12)).replace("max_quarantined = 0.5", "max_quarantined = 0.17")
    for name in ("009", "011"):
        (tmp_path / f"images/odd/{name}.png").write_bytes(b"broken")
    assert rebuilt(tmp_path, dataset).exit_code == RowsMissing.exit_code


@pytest.mark.parametrize(
    ("dataset", "what"),
    [
        ('kind = "image_folder"\npath = "nowhere"', "there is no .*nowhere"),
        ('kind = "parquet_images"\npath = "nowhere"', "there is no .*nowhere"),
        ('kind = "arrays"\npath = "nowhere.npy"', "there is no .*nowhere.npy"),
        ('kind = "image_folder"\npath = "empty"', "has no sub-folders"),
        ('kind = "image_folder"\npath = "hollow"', "dataset d is empty: .*/hollow"),
        ('kind = "image_folder"\npath = "broken"', "dataset d has no readable sample"),
        ('kind = "arrays"\npath = "none.npy"', "dataset d is empty: .*/none.npy"),
    ],
)
def test_a_dataset_that_is_not_there_or_empty_is_refused_and_nothing_is_written(
    tmp_path: Path, dataset: str, what: str
) -> None:
    for name in ("empty", "hollow/class", "broken/class"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "broken/class/a.png").write_bytes(b"broken")
    np.save(tmp_path / "none.npy", np.zeros((0, 1, 8, 8), np.uint8))
    with pytest.raises(MissingSource, match=what):
        rebuilt(tmp_path, f'[[dataset]]\nname = "d"\n{dataset}\n')
    assert not (tmp_path / "cache").exists()


def test_a_teacher_over_unlabelled_samples_of_no_classes_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", digits(4)[0])
    write_teacher(tmp_path)
    with pytest.raises(BadRequest, match="dataset d has no classes"):
        rebuilt(tmp_path, '[[dataset]]\nname = "d"\nkind = "arrays"\npath = "inputs.npy"\n', teacher_section())


def test_a_teachers_own_exception_ends_the_build_at_once(tmp_path: Path) -> None:
    write_teacher(tmp_path, fault="raise")
    dataset = write_digits(tmp_path, 64, marked=(3,))
    with pytest.raises(StillroomError) as caught:
        rebuilt(tmp_path, dataset, teacher_section(fault="raise"))
    assert caught.value.found == "RuntimeError: a fault in the teacher's own code"
    assert Cache.open(str(tmp_path / "cache")).committed("digits") == {0, 1, 2, 3}


def test_planning_reads_only(tmp_path: Path) -> None:
    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job

    write_teacher(tmp_path)
    read = read_job(write_job(tmp_path, write_digits(tmp_path, 20), teacher_section()), CacheJob)
    plan = prepare_build(BuildRequest(read.cache, "job", tuple(read.dataset), tuple(read.teacher)))
    assert plan.num_missing == 4
    assert not (tmp_path / "cache").exists()


def test_planning_notices_another_teacher_before_anything_is_written(built: Built) -> None:
    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job

    read = read_job(built.job, CacheJob)
    teachers = tuple(teacher.model_copy(update={"autocast": "bf16"}) for teacher in read.teacher)
    with pytest.raises(StaleCache, match=r"differs in model\.autocast"):
        prepare_build(BuildRequest(read.cache, str(built.job), tuple(read.dataset), teachers))


def test_two_builders_that_plan_the_same_rows_agree(tmp_path: Path) -> None:
    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job
    from teacher_cache.building.build import run_build
    from teacher_cache.building.runners import run_inline
    from tests.teacher_cache.toys import Silent

    write_teacher(tmp_path)
    read = read_job(write_job(tmp_path, write_digits(tmp_path, 20), teacher_section()), CacheJob)
    request = BuildRequest(read.cache, "job", tuple(read.dataset), tuple(read.teacher))
    first, second = prepare_build(request), prepare_build(request)
    assert run_build(first, run_inline, Silent()).built == 4
    report = run_build(second, run_inline, Silent())
    assert (report.built, report.lost, report.exit_code) == (0, 4, 0)
    assert verify(Cache.open(read.cache)).bad == ()


def test_two_builders_that_plan_other_rows_do_not_both_write(tmp_path: Path) -> None:
    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job
    from storage.errors import TryAgain
    from teacher_cache.building.build import run_build
    from teacher_cache.building.runners import run_inline
    from tests.teacher_cache.toys import Silent

    def planned(count: int) -> Any:
        job = write_job(tmp_path, image_folder(tmp_path, range(count)))
        read = read_job(job, CacheJob)
        return prepare_build(BuildRequest(read.cache, str(job), tuple(read.dataset), ()))

    first, second = planned(6), planned(8)
    run_build(second, run_inline, Silent())
    with pytest.raises(TryAgain, match="grew in two ways at once"):
        run_build(first, run_inline, Silent())


def prepared(job: Path) -> PreparedBuild:
    return prepare_build(read_job(job, CacheJob).request(job, device="cpu", threads=1))


@pytest.mark.parametrize("before", [(), ("cache",)], ids=["no cache", "a cache without the teacher"])
def test_a_promise_that_another_builder_makes_meanwhile_is_compared(tmp_path: Path, before: tuple[str, ...]) -> None:
    write_teacher(tmp_path)
    dataset = write_digits(tmp_path, 20)
    for _ in before:
        assert rebuilt(tmp_path, dataset).exit_code == 0
    ours = prepared(write_job(tmp_path, dataset, teacher_section()))
    theirs = teacher_section(extra='encoding = { dtype = "bf16" }')
    assert rebuilt(tmp_path, dataset, theirs).exit_code == 0
    with pytest.raises(StaleCache, match=r"encoding\.dtype"):
        run_build(ours, run_inline, Silent())


def test_a_cache_that_was_made_anew_meanwhile_is_told(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.folder, tmp_path / "kitchen")
    ours = prepared(tmp_path / "kitchen/job.toml")
    shutil.rmtree(tmp_path / "kitchen/cache")
    new = Cache.create(str(tmp_path / "kitchen/cache"))
    with pytest.raises(TryAgain) as caught:
        run_build(ours, run_inline, Silent())
    assert (caught.value.what, caught.value.found) == (
        f"{new.url} is another cache than a moment ago",
        f"cache {new.id}",
    )


def test_the_ledger_knows_every_commit_after_a_build(built: Built) -> None:

    ledger = built.cache.catalogue().ledger()
    commits = everything(ledger)
    assert (ledger.new, commits.height) == (0, 6)
    assert commits["rows"].sum() == 2 * 40
    assert commits.filter(pl.col("seconds") <= 0).is_empty()


def test_a_piece_of_work_travels_as_two_kilobytes_and_comes_back_as_one(built: Built) -> None:
    """Weights and data never pass through the scheduler."""
    import pickle

    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job
    from teacher_cache.building.build import _ask_work, _ingest_work
    from teacher_cache.work.perform import perform

    read = read_job(built.job, CacheJob)
    request = BuildRequest(read.cache, "job", tuple(read.dataset), tuple(read.teacher))
    for stage in prepare_build(request).stages:
        work_of = _ingest_work if stage.teacher is None else _ask_work
        for work in work_of(stage, stage.shards, request):
            assert len(pickle.dumps(work)) < 2048
            assert len(pickle.dumps(perform(work))) < 1024


def test_what_is_passed_over_is_told(tmp_path: Path) -> None:
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "photos" / name)
    (tmp_path / "photos/dog/c.heic").write_bytes(b"")
    job = write_job(tmp_path, '[[dataset]]\nname = "p"\nkind = "image_folder"\npath = "photos"\n')
    watchers = [Silent(), Silent()]
    for watcher in watchers:  # the second time nothing is missing
        build(job, watcher=watcher)
    assert [watcher.notes for watcher in watchers] == [["note: p: passed over: 1 × *.heic"]] * 2


@pytest.mark.parametrize(
    ("mistake", "kind"),
    [
        (teacher_section(extra='features = { f = { layer = "nope" } }\n'), BadTeacher),
        (teacher_section(classes=7), BadWeights),
        (teacher_section().replace('weights = "toy.safetensors"', "").replace("{  }", "{ classes = 7 }"), BadTeacher),
    ],
    ids=["a layer", "weights", "drawn"],
)
def test_a_first_mistake_leaves_no_promise_behind(tmp_path: Path, mistake: str, kind: type[Exception]) -> None:
    write_teacher(tmp_path)
    source = write_digits(tmp_path, 20)
    with pytest.raises(kind):
        rebuilt(tmp_path, source, mistake)
    assert not (tmp_path / "cache/digits/toy").exists()
    assert rebuilt(tmp_path, source, teacher_section()).exit_code == 0


def test_a_teacher_of_other_classes_leaves_no_promise_behind(tmp_path: Path) -> None:
    write_teacher(tmp_path, classes=7)
    source = write_digits(tmp_path, 20)
    with pytest.raises(BadTeacher, match=r"does not fit dataset digits"):
        rebuilt(tmp_path, source, teacher_section(classes=7))
    assert not (tmp_path / "cache/digits/toy").exists()
    write_teacher(tmp_path)
    assert rebuilt(tmp_path, source, teacher_section()).exit_code == 0


def test_of_two_builders_with_other_teachers_of_one_name_the_second_is_refused_by_field(tmp_path: Path) -> None:
    source = write_digits(tmp_path, 20)
    both = []
    for number in (0, 1):  # both look at what is there before either has asked
        folder = tmp_path / str(number)
        folder.mkdir()
        write_teacher(folder, seed=number)
        section = teacher_section().replace('"toy.', f'"{number}/toy.')
        job = write_job(tmp_path, source, section)
        both.append(prepare_build(read_job(job, CacheJob).request(job, device="cpu")))
    assert run_build(both[0], run_inline, Silent()).exit_code == 0
    with pytest.raises(StaleCache, match=r"digits/toy/teacher.json differs in model.weights"):
        run_build(replace(both[1], catalogue=None), run_inline, Silent())
    assert verify(Cache.open(str(tmp_path / "cache"))).bad == ()


def test_a_promise_of_which_no_shard_is_left_says_what_to_delete(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    source = write_digits(tmp_path, 20)
    rebuilt(tmp_path, source, teacher_section())
    folder = tmp_path / "cache/digits/toy"
    shutil.rmtree(folder / "plain")
    with pytest.raises(StaleCache) as caught:
        rebuilt(tmp_path, source, teacher_section(extra='features = { f = { layer = "conv" } }\n'))
    assert caught.value.do == f"delete {folder}, of which no shard was built, and run the same command again"
    shutil.rmtree(folder)
    assert rebuilt(tmp_path, source, teacher_section()).exit_code == 0


def broken_folder(folder: Path, *names: str, limit: float = 0.1) -> str:
    """Write 12 images of two classes, some of them broken."""
    dataset = image_folder(folder, range(12)).replace("max_quarantined = 0.5", f"max_quarantined = {limit}")
    for name in names:
        (folder / f"images/odd/{name}.png").write_bytes(b"broken")
    return dataset


def test_files_that_could_never_be_read_may_go(tmp_path: Path) -> None:
    write_teacher(tmp_path, classes=2)
    dataset, toy = broken_folder(tmp_path, "009", "011"), teacher_section(classes=2)
    with pytest.raises(BadRequest, match="too many samples of digits cannot be read") as caught:
        rebuilt(tmp_path, dataset, toy)
    assert caught.value.do is not None
    assert "delete them" in caught.value.do
    for name in ("009", "011"):
        (tmp_path / f"images/odd/{name}.png").unlink()
    for _ in range(2):  # the second time there is nothing to do
        watcher = Silent()
        report = build(write_job(tmp_path, dataset, toy), watcher=watcher)
        assert (report.exit_code, len(report.quarantined["digits"])) == (3, 2)
        told = "note: digits: the files of 2 rows that could never be read are gone; the rows stay unread"
        assert told in watcher.notes
    assert verify(Cache.open(str(tmp_path / "cache"))).bad == ()


def test_a_file_that_was_read_may_not_go_and_a_dataset_that_nobody_asked_about_can_be_deleted(tmp_path: Path) -> None:
    write_teacher(tmp_path, classes=2)
    dataset, toy = broken_folder(tmp_path, "011", limit=0.5), teacher_section(classes=2)
    rebuilt(tmp_path, dataset)
    for name in ("009", "011"):
        (tmp_path / f"images/odd/{name}.png").unlink()
    with pytest.raises(StaleCache) as caught:
        rebuilt(tmp_path, dataset, toy)
    assert caught.value.found == "1 files gone or shorter: odd/009.png"
    folder = tmp_path / "cache/digits"
    assert caught.value.do is not None
    assert f"delete {folder}, of which no teacher was asked, and run the same command again" in caught.value.do
    with pytest.raises(StaleCache) as caught:
        rebuilt(tmp_path, dataset + "seed = 1\n", toy)
    assert f"or delete {folder}, of which no teacher was asked" in str(caught.value.do)
    for commit in folder.glob("ingest/*.parquet"):
        commit.unlink()
    with pytest.raises(StaleCache) as caught:
        rebuilt(tmp_path, dataset + "seed = 1\n", toy)
    assert caught.value.do == f"delete {folder}, of which no shard was built, and run the same command again"
    shutil.rmtree(folder)
    assert rebuilt(tmp_path, dataset, toy).exit_code == 0


def test_a_mended_shard_with_a_file_that_is_gone_says_what_to_do(tmp_path: Path) -> None:
    dataset = broken_folder(tmp_path, "009", "011", limit=0.5)
    whole = (tmp_path / "images/odd/007.png").read_bytes()
    assert rebuilt(tmp_path, dataset).exit_code == 3
    (tmp_path / "images/odd/009.png").unlink()
    (tmp_path / "images/odd/011.png").write_bytes(whole)
    with pytest.raises(StaleCache) as caught:
        rebuilt(tmp_path, dataset)
    assert (caught.value.found, caught.value.do) == (
        "gone: odd/009.png",
        "put them back as they were, build, and delete them then",
    )
    (tmp_path / "images/odd/009.png").write_bytes(b"broken")
    assert len(rebuilt(tmp_path, dataset).quarantined["digits"]) == 1
    (tmp_path / "images/odd/009.png").unlink()
    assert len(rebuilt(tmp_path, dataset).quarantined["digits"]) == 1


@pytest.mark.parametrize(("share", "use"), [(0.999, "to train on"), (0.001, "to evaluate on")])
def test_a_share_of_held_rows_that_leaves_none_of_the_others_is_told(tmp_path: Path, share: float, use: str) -> None:
    watch = Silent()
    build(write_job(tmp_path, write_digits(tmp_path, 8) + f"validation = {share}\n"), watcher=watch)
    assert watch.notes == [f"warning: validation = {share} leaves no row of digits {use}"]
