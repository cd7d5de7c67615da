"""Views in a build: promised once, computed once each, killed and resumed, and the same as a model would be shown."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.cache.query import query_samples
from storage.cache.status import read_info, read_status
from storage.cache.verify import verify
from storage.errors import BadRequest, MissingObject, StaleCache
from storage.format.shards import Commit, ShardKey
from storage.format.specs import ViewsSpec
from storage.inputs.arguments import to_float
from storage.views import PLAIN
from storage.views.check import readable_rows
from teacher_cache.building.build import run_build
from teacher_cache.building.memory import project_worker
from teacher_cache.building.prepared import BuildRequest, PreparedBuild
from teacher_cache.building.runners import run_inline
from teacher_cache.building.survey import prepare_build
from tests.damage import flip
from tests.teacher_cache.toys import (
    DIGITS,
    Silent,
    build,
    contents,
    teacher_section,
    write_digits,
    write_job,
    write_teacher,
)

STEPS = '{ kind = "pad_crop", padding = 1 }, { kind = "cutmix", probability = 0.5 }'


def views(count: int = 2, *, seed: int = 0, steps: str = STEPS, extra: str = "") -> str:
    return f"[views]\ncount = {count}\nseed = {seed}\ntransforms = [{steps}]\n{extra}\n"


def job_of(folder: Path, *sections: str, rows: int = 40) -> Path:
    return write_job(folder, write_digits(folder, rows), teacher_section(), *sections)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_teacher(tmp_path)
    return tmp_path / "cache"


def plan(job: Path) -> PreparedBuild:
    """Return what a build would do, as a dry run does."""
    read = read_job(job, CacheJob)
    request = BuildRequest(read.cache, str(job), tuple(read.dataset), tuple(read.teacher), views=read.views)
    return prepare_build(request)


def stages(cache: Path) -> dict[str, int]:
    """Return rows done of each stage."""
    return {
        f"{s['teacher']}/{s['view']}": s["rows_done"]
        for s in read_status(Cache.open(str(cache)).catalogue()).to_dicts()
    }


def test_a_teacher_is_asked_about_every_view_and_plain_only_if_wanted(cache: Path, tmp_path: Path) -> None:
    build(job_of(tmp_path, views(2)))
    assert stages(cache) == {"ingest/plain": 40, "toy/view-000": 40, "toy/view-001": 40}
    build(job_of(tmp_path, views(2, extra="plain = true")))
    assert stages(cache)["toy/plain"] == 40


def noted(job: Path) -> list[str]:
    """Return what a build has to say."""
    progress = Silent()
    run_build(plan(job), run_inline, progress)
    return progress.notes


def test_plain_targets_beside_views_that_the_job_has_lost_are_noted(cache: Path, tmp_path: Path) -> None:
    assert noted(job_of(tmp_path, views(1, extra="plain = true"))) == []
    for commit in (cache / "digits/toy/plain").glob("*.parquet"):
        commit.unlink()
    assert noted(job_of(tmp_path)) == [
        "note: this job does not augment digits, of which the cache has views (digits/views.json): "
        "teachers are asked about its plain inputs, beside them"
    ]
    assert noted(job_of(tmp_path)) == []  # nothing is missing any more


def test_targets_are_of_what_the_view_shows(cache: Path, tmp_path: Path) -> None:
    model = write_teacher(tmp_path)
    build(job_of(tmp_path, views(2)))
    opened = Cache.open(str(cache))
    rows = readable_rows(opened.commit(ShardKey("digits", None, PLAIN, 1), with_table=True).table)
    inputs = torch.from_numpy(opened.read_inputs("digits", 1))
    promised = opened.views("digits")
    assert promised is not None
    for view in ("view-000", "view-001"):
        shown = promised.view(view).show_shard(inputs, rows.keys_B, rows.splits_B)
        assert not torch.equal(shown, inputs)
        with torch.inference_mode():
            expected = model(to_float(shown))
        found = opened.read_targets("digits", "toy", 1, view)["logits"]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_larger_count_computes_only_the_new_views(cache: Path, tmp_path: Path) -> None:
    assert build(job_of(tmp_path, views(2))).built == 3 + 2 * 3
    before = contents(cache)
    report = build(job_of(tmp_path, views(4)))
    assert (report.built, report.present) == (2 * 3, 3 + 2 * 3)
    assert {key: found for key, found in contents(cache).items() if key in before} == before
    assert build(job_of(tmp_path, views(1))).built == 0


def test_plain_targets_stay_when_views_come(cache: Path, tmp_path: Path) -> None:
    build(job_of(tmp_path))
    before = contents(cache)
    build(job_of(tmp_path, views(1)))
    after = contents(cache)
    assert {key: after[key] for key in before} == before
    assert stages(cache) == {"ingest/plain": 40, "toy/plain": 40, "toy/view-000": 40}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (views(2, seed=1), "seed"),
        (views(2, steps='{ kind = "pad_crop", padding = 2 }, { kind = "cutmix", probability = 0.5 }'), "transforms"),
    ],
)
def test_changed_views_are_refused_by_field(cache: Path, tmp_path: Path, change: str, field: str) -> None:
    build(job_of(tmp_path, views(2)))
    with pytest.raises(StaleCache, match=f"views.json differs in {field}"):
        plan(job_of(tmp_path, change))


def test_datasets_that_are_not_named_stay_plain(cache: Path, tmp_path: Path) -> None:
    job = job_of(tmp_path, DIGITS.replace('name = "digits"', 'name = "other"'), views(1, extra='datasets = ["other"]'))
    build(job)
    assert {
        (s["dataset"], s["view"])
        for s in read_status(Cache.open(str(cache)).catalogue()).to_dicts()
        if s["teacher"] == "toy"
    } == {
        ("digits", "plain"),
        ("other", "view-000"),
    }
    assert Cache.open(str(cache)).views("digits") is None


def floats(folder: Path) -> str:
    np.savez(folder / "floats.npz", inputs=np.ones((20, 1, 8, 8), np.float32), labels=np.arange(20) % 10)
    classes = json.dumps([str(i) for i in range(10)])
    return f'[[dataset]]\nname = "floats"\nkind = "arrays"\npath = "floats.npz"\nclasses = {classes}\n'


def test_views_of_floats_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="dataset floats cannot be augmented: its inputs are float32"):
        build(write_job(tmp_path, floats(tmp_path), views(1, extra='datasets = ["floats"]')))
    with pytest.raises(BadRequest, match="no dataset can be augmented"):
        build(write_job(tmp_path, floats(tmp_path), views(1)))


def test_a_transform_that_does_not_fit_is_refused_by_dataset(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="dataset digits cannot be augmented: padding = 8"):
        build(write_job(tmp_path, DIGITS, views(1, steps='{ kind = "pad_crop", padding = 8 }')))


def test_views_of_an_unknown_dataset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="views names unknown datasets train; there are digits"):
        read_job(write_job(tmp_path, DIGITS, views(1, extra='datasets = ["train"]')), CacheJob)


def test_a_view_that_is_lost_is_built_alone(cache: Path, tmp_path: Path) -> None:
    job = job_of(tmp_path, views(2))
    build(job)
    before = contents(cache)
    opened = Cache.open(str(cache))
    opened.objects.delete(ShardKey("digits", "toy", "view-001", 2).commit_path)
    assert build(job).built == 1
    assert contents(cache) == before


def test_verify_knows_views(cache: Path, tmp_path: Path) -> None:
    build(job_of(tmp_path, views(2)))
    opened = Cache.open(str(cache))
    assert verify(opened).shards == 9
    flip(opened, ShardKey("digits", "toy", "view-001", 2), "logits/c/0/0")
    assert [str(shard.key) for shard in verify(opened).bad] == ["digits/toy/view-001/00002"]


def test_lost_promises_of_views_are_told(cache: Path, tmp_path: Path) -> None:
    job = job_of(tmp_path, views(1))
    build(job)
    (cache / "digits" / "views.json").unlink()
    for action in (lambda: verify(Cache.open(str(cache))), lambda: build(job)):
        with pytest.raises(MissingObject, match=r"views\.json is not there"):
            action()


def test_mended_samples_drop_the_shards_of_every_view(cache: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    for i in range(6):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(folder / f"{i}.png")
    good = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(b"broken")
    source = (
        '[[dataset]]\nname = "digits"\nkind = "image_folder"\npath = "images"\nsize = 8\nchannels = 1\n'
        "rows_per_shard = 4\nmax_quarantined = 0.5\n"
    )
    job = write_job(tmp_path, source, teacher_section(classes=1), views(2))
    write_teacher(tmp_path, classes=1)
    build(job)
    (folder / "2.png").write_bytes(good)
    assert build(job).built == 3  # the ingest of the first shard, and both views of it
    assert verify(Cache.open(str(cache))).bad == ()


def test_columns_of_samples_are_of_the_first_view_or_of_plain(cache: Path, tmp_path: Path) -> None:
    build(job_of(tmp_path, views(2)))
    opened = Cache.open(str(cache))
    first = opened.catalogue().read_commits("digits", "toy", "view-000")[0].table["entropy"].to_pylist()
    assert opened.samples().of("digits", ["toy"])["toy_entropy"].to_list()[:16] == first
    assert len(query_samples(opened, "SELECT toy_top FROM digits")) == 40
    build(job_of(tmp_path, views(2, extra="plain = true")))
    plain = opened.catalogue().read_commits("digits", "toy")[0].table["entropy"].to_pylist()
    assert opened.samples().of("digits", ["toy"])["toy_entropy"].to_list()[:16] == plain


def test_info_tells_what_views_are_promised(cache: Path, tmp_path: Path) -> None:
    build(job_of(tmp_path, views(2)))
    info = read_info(Cache.open(str(cache)).catalogue())["datasets"]["digits"]
    assert [step["kind"] for step in info["views"]["transforms"]] == ["pad_crop", "cutmix"]
    assert info["teachers"]["toy"]["views"] == ["view-000", "view-001"]


def test_views_cost_memory_for_the_shard_at_work(tmp_path: Path) -> None:
    def projected(*sections: str) -> int:
        return project_worker(plan(write_job(tmp_path, DIGITS, teacher_section(), *sections))).shards

    write_teacher(tmp_path)
    assert projected(views(1)) - projected() == 3 * 256 * 64


def shown(cache: Cache) -> tuple[Commit, Commit, np.ndarray, ViewsSpec | None]:
    """Return what says whether a student is shown what the teacher was: of the first shard, in its first view."""
    ingest = cache.commit(ShardKey("digits", None, "plain", 0), with_table=True)
    targets = cache.commit(ShardKey("digits", "toy", "view-000", 0))
    return ingest, targets, cache.read_inputs("digits", 0), cache.views("digits")


@pytest.mark.parametrize("about", ["view_fingerprint", "views", "inputs_digest"])
def test_what_a_teacher_saw_is_checked(cache: Path, tmp_path: Path, about: str) -> None:
    build(job_of(tmp_path, views(1)))
    opened = Cache.open(str(cache))
    ingest, targets, inputs_S, spec = shown(opened)
    opened.check_view(ingest, targets, inputs_S, spec)
    changed = {
        "view_fingerprint": "a transform has changed its code",
        "views": "transform options",
        "inputs_digest": "inputs",
    }

    targets.about[about] = "0" * 32
    with pytest.raises(StaleCache, match=changed[about]):
        opened.check_view(ingest, targets, inputs_S, spec)


def test_a_library_that_shows_other_images_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(job_of(tmp_path, views(1)))
    opened = Cache.open(str(cache))
    monkeypatch.setattr("storage.views.check.version", lambda name: "99" if name == "torch" else "0.0.1")
    opened.check_view(*shown(opened))  # the images decide, not versions
    monkeypatch.setattr("storage.views.shown.View.fingerprint", lambda *_: "1" * 32)
    with pytest.raises(StaleCache, match=r"libraries make the difference: .*torch") as refused:
        opened.check_view(*shown(opened))
    assert f"torch {torch.__version__}" in refused.value.expected


@pytest.mark.slow
def test_a_killed_build_of_views_is_made_good_by_the_same_command(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    write_teacher(whole)
    sections = (teacher_section(seconds=0.2), views(2))
    monkeypatch.setenv("HURRY", "1")
    build(write_job(whole, write_digits(whole, 64, rows_per_shard=8), *sections))
    monkeypatch.delenv("HURRY")
    job = write_job(tmp_path, write_digits(tmp_path, 64, rows_per_shard=8), *sections)
    command = [str(Path(sys.executable).with_name("cache")), "build", str(job)]
    second_view = cache / "digits" / "toy" / "view-001"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 120
        while len(list(second_view.glob("[0-9]*.parquet"))) < 2:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    assert 0 < stages(cache)["toy/view-001"] < 64
    monkeypatch.setenv("HURRY", "1")
    report = build(job)
    assert 0 < report.built < 8
    assert contents(cache) == contents(whole / "cache")
