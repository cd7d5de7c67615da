"""Views on the student's side: the very images that the teacher saw, in turn, whatever way rows reach the device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from storage.cache import Cache
from storage.encodings import Capability
from storage.errors import BadRequest, IncompleteCache, StaleCache
from storage.format.shards import ShardKey
from storage.views import transforms as code
from storage.views.options import Flip
from student_train.feed.batches import ArrayKey, Batch, MixedLabels, Needs, SoftNeed
from student_train.feed.feed import Feed
from student_train.feed.order import Cut
from student_train.feed.order.views import check_one_class, choose_views
from student_train.feed.own_loop import open_rows, wants
from student_train.feed.residency import FeedPool, Place, largest_shard, projected_bytes
from student_train.feed.selection import select_rows
from student_train.losses.labels import labels_cross_entropy
from student_train.preparing.dry_run import dry_run
from student_train.preparing.request import Request
from student_train.running.train import train_students
from tests.student_train.feed.test_far import Far
from tests.student_train.toys import KD, LABELS, request_of, student
from tests.teacher_cache.toys import build, teacher_section, write_digits, write_job, write_teacher

TAUGHT = Needs(labels=True, soft=frozenset({SoftNeed("toy", Capability("bucket", 1.0))}))
FADED = '{ kind = "pad_crop", padding = 1 }, { kind = "flip" }, { kind = "mixup", alpha = 1.0, probability = 0.5 }'
MIXING = FADED + ', { kind = "cutmix", probability = 0.4 }'
CPU = torch.device("cpu")


def views(count: int, steps: str = MIXING, extra: str = "") -> str:
    return f"[views]\ncount = {count}\ntransforms = [{steps}]\n{extra}\n"


def job_of(folder: Path, *sections: str, features: str = "") -> Path:
    source = write_digits(folder, 120, rows_per_shard=25) + "validation = 0.2\n"
    return write_job(folder, source, teacher_section(extra=features), *sections)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """Return the folder of a cache with two views that mix, and its teacher."""
    folder = tmp_path_factory.mktemp("mixed")
    model = write_teacher(folder)
    build(job_of(folder, views(2)))
    return folder / "cache", model


@pytest.fixture
def cache(mixed: tuple[Path, nn.Module]) -> Cache:
    return Cache.open(str(mixed[0]))


def feed_of(cache: Cache, needs: Needs = TAUGHT, *, place: Place, window_shards: int = 2) -> Feed:
    shown = choose_views(cache.catalogue(), ["digits"], [TAUGHT], None, allow_partial=False)
    selection = select_rows(cache.samples(), "digits/train", needs, views=shown)
    return FeedPool(cache, CPU, place=place, window_shards=window_shards).feed(selection, needs)


def equal(a: Batch, b: Batch) -> bool:
    assert a.labels_B is not None
    assert b.labels_B is not None
    assert a.mixed is not None
    assert b.mixed is not None
    pairs = [(a.inputs, b.inputs), (a.labels_B, b.labels_B), *zip(a.mixed, b.mixed, strict=True)]
    pairs += [(values, b.targets["toy"].arrays[name]) for name, values in a.targets["toy"].arrays.items()]
    return all(torch.equal(x, y) for x, y in pairs)


def request(cache: Cache, folder: Path, *students: Any, **data: Any) -> Request:
    data = {"train": "digits/train", "validation": "digits/validation"} | data
    return request_of(cache, folder / "runs", *(students or (taught(),)), **data)


def taught(name: str = "a", **options: Any) -> Any:
    return student(name, **{"objective": [LABELS, KD | {"teacher": "toy"}]} | options)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_targets_are_the_teachers_own_of_the_very_inputs(
    cache: Cache, mixed: tuple[Path, nn.Module], epoch: int
) -> None:
    for batch in feed_of(cache, place="device").shuffled(32, seed=0, epoch=epoch):
        with torch.inference_mode():
            expected = mixed[1](batch.inputs)
        torch.testing.assert_close(batch.targets["toy"].arrays["logits"], expected, atol=1e-5, rtol=0)


def test_streamed_batches_are_the_resident_ones(cache: Cache) -> None:
    for epoch in (0, 1):
        whole = list(feed_of(cache, place="device").shuffled(17, seed=3, epoch=epoch))
        streamed = list(feed_of(cache, place="stream").shuffled(17, seed=3, epoch=epoch))
        assert len(whole) == len(streamed)
        assert all(map(equal, whole, streamed))


@pytest.mark.parametrize("place", ["device", "stream"])
def test_two_views_of_one_pass_are_those_of_two_passes(cache: Cache, place: Place) -> None:
    feed = feed_of(cache, place=place)
    cuts = [Cut(17, "view-001"), Cut(9, "view-000", first_step=2)]
    both = list(feed.shared(cuts, seed=3, epoch=0))
    for number, cut in enumerate(cuts):
        own = [fed.batch for fed in both if fed.cut == number]
        alone = [fed.batch for fed in feed.shared([cut], seed=3, epoch=0)]
        assert len(own) == len(alone) == -(-feed.num_rows // cut.batch_size) - cut.first_step
        assert all(map(equal, own, alone))


def test_an_epoch_goes_on_in_the_middle(cache: Cache) -> None:
    whole = list(feed_of(cache, place="stream").shuffled(17, seed=3, epoch=1))
    rest = list(feed_of(cache, place="stream").shuffled(17, seed=3, epoch=1, first_step=3))
    assert all(map(equal, whole[3:], rest))


def test_epochs_show_views_in_turn(cache: Cache, tmp_path: Path) -> None:
    train_students(request(cache, tmp_path))
    metrics = pl.read_parquet(tmp_path / "runs" / "a" / "metrics.parquet")
    assert metrics["view"].to_list() == ["view-000", "view-001", "view-000"]


def test_a_loss_on_features_learns_from_views_of_which_there_are_no_plain_ones(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    build(job_of(tmp_path, views(2, FADED), features='features.h = { layer = "norm" }'))
    cache = Cache.open(str(tmp_path / "cache"))
    hint = {"loss": "hint", "teacher": "toy", "feature": "h", "student_layer": "network.hidden1"}
    train_students(request(cache, tmp_path, taught(objective=[LABELS, hint])))
    metrics = pl.read_parquet(tmp_path / "runs" / "a" / "metrics.parquet")
    assert metrics["view"].to_list() == ["view-000", "view-001", "view-000"]
    first, _, last = metrics["term hint:toy/h"].to_list()
    assert last < first


def test_of_a_store_that_is_far_the_targets_of_all_views_count(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass may show two views, and rows that are kept are loaded in all of theirs: each has its own targets."""
    few = write_digits(tmp_path, 250, rows_per_shard=10) + "validation = 0.2\n"
    write_teacher(tmp_path)
    build(write_job(tmp_path, few, teacher_section(extra='features.h = { layer = "norm" }'), views(2)))
    near = Cache.open(str(tmp_path / "cache"))
    needs = TAUGHT | Needs(features=frozenset({ArrayKey("toy", "feature/h")}))
    selection = feed_of(near, needs, place="stream").selection
    one, two = (sum(largest_shard(selection, needs, count)) for count in (1, 2))
    monkeypatch.setattr("storage.format.stores.base.AHEAD_BYTES", 6 * one)
    objects = Far(near.url)
    feed = feed_of(Cache(objects, near.spec), needs, place="stream", window_shards=1)
    ahead: list[int] = []
    for shown in (1, 2):
        objects.fetched.clear()
        fed = feed.shared([Cut(4, f"view-00{number}") for number in range(shown)], seed=0, epoch=0)
        next(fed)
        time.sleep(0.5)
        ahead.append(len(objects.fetched) // (1 + shown) - 2)  # two windows are read, of one shard each
        fed.close()
    assert ahead == [6, 6 * one // two]
    assert ahead[1] < ahead[0]


def test_held_rows_are_plain(cache: Cache) -> None:
    held = select_rows(cache.samples(), "digits/validation", Needs())
    feed = FeedPool(cache, CPU, place="device", window_shards=2).feed(held, Needs(labels=True))
    stored = torch.cat(
        [torch.from_numpy(cache.read_inputs("digits", s)[r]) for s, r in zip(held.shards_S, held.rows, strict=True)]
    )
    assert torch.equal(torch.cat([batch.inputs for batch in feed.in_order(16)]), stored.float() / 255)


def test_two_labels_weigh_as_the_pixels_do() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    own, partner, weight = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 0, 2, 3, 3]), torch.linspace(0, 1, 6)
    targets = weight[:, None] * nn.functional.one_hot(own, 4) + (1 - weight[:, None]) * nn.functional.one_hot(
        partner, 4
    )
    expected = nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    found = labels_cross_entropy(logits, own, smoothing=0.1, mixed=MixedLabels(partner, weight))
    torch.testing.assert_close(found, expected)


def test_partners_labels_are_of_the_rows_mixed_in(cache: Cache) -> None:
    feed = feed_of(cache, place="device")
    labels_N = torch.from_numpy(feed.selection.labels_N)
    for batch in feed.shuffled(1000, seed=0, epoch=0):
        assert batch.mixed is not None
        assert set(batch.mixed.partner_labels_B.tolist()) <= set(labels_N.tolist())
        unmixed = batch.mixed.own_weight_B == 1
        assert 0 < int(unmixed.sum()) < len(unmixed)


def test_a_loop_of_ones_own_is_shown_the_views_and_says_that_it_weighs_two_labels(cache: Cache) -> None:
    with pytest.raises(BadRequest, match="labels wants one true class, and these views mix two"):
        open_rows(cache, "digits/train", wants(labels=True, soft={"toy": 1.0}))
    rows = open_rows(cache, "digits/train", wants(labels=True, soft={"toy": 1.0}, mixed=True), window_shards=2)
    assert rows.view_names == ("view-000", "view-001")
    for epoch in (0, 1):
        theirs = feed_of(cache, place="stream").shuffled(17, seed=0, epoch=epoch)
        assert all(equal(a, b) for a, b in zip(rows.epoch(epoch, 17), theirs, strict=True))


def test_as_many_views_as_every_teacher_has(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    build(job_of(tmp_path, views(3)))
    cache = Cache.open(str(tmp_path / "cache"))

    def count(asked: int | None = None, *, allow_partial: bool = False) -> int:
        found = choose_views(cache.catalogue(), ["digits"], [TAUGHT], asked, allow_partial=allow_partial)
        return 0 if found is None else found.count

    assert (count(), count(0), count(2)) == (3, 0, 2)
    cache.objects.delete(ShardKey("digits", "toy", "view-001", 2).commit_path)
    assert (count(), count(allow_partial=True)) == (1, 3)
    with pytest.raises(IncompleteCache, match="is only half built") as refused:
        train_students(request(cache, tmp_path, views=3))
    assert refused.value.found == "teacher toy, view-001: no shard 2"
    cache.objects.delete(ShardKey("digits", "toy", "view-000", 0).commit_path)
    with pytest.raises(IncompleteCache) as refused:
        train_students(request(cache, tmp_path))
    assert refused.value.found == "teacher toy, view-000: no shard 0"


def test_plain_inputs_stay_what_they_were_beside_views(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    build(job_of(tmp_path))
    cache = Cache.open(str(tmp_path / "cache"))
    train_students(request(cache, tmp_path / "before"))
    build(job_of(tmp_path, views(2)))
    train_students(request(cache, tmp_path / "after", views=0))
    weights = [(tmp_path / when / "runs" / "a" / "student.safetensors").read_bytes() for when in ("before", "after")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("allow_partial", [False, True])
def test_plain_targets_that_no_build_was_asked_for_are_told_with_the_option_that_is(
    cache: Cache, tmp_path: Path, allow_partial: bool
) -> None:
    with pytest.raises(IncompleteCache) as refused:
        train_students(request(cache, tmp_path, views=0, allow_partial=allow_partial))
    assert refused.value.found == "teacher toy: no shard 0 to 4"
    assert refused.value.do is not None
    assert refused.value.do.startswith("cache build JOB.toml    # with [views] plain = true, finishes it")


def test_labels_alone_learn_from_views_without_any_teacher(tmp_path: Path) -> None:
    build(write_job(tmp_path, write_digits(tmp_path, 60) + "validation = 0.2\n", views(1)))
    cache = Cache.open(str(tmp_path / "cache"))
    train_students(request(cache, tmp_path, student(), views=5))
    metrics = pl.read_parquet(tmp_path / "runs" / "a" / "metrics.parquet")
    assert metrics["view"].to_list() == ["view-000", "view-001", "view-002"]


def test_views_of_a_dataset_without_any_are_refused(tmp_path: Path) -> None:
    build(write_job(tmp_path, write_digits(tmp_path, 60) + "validation = 0.2\n"))
    with pytest.raises(BadRequest, match="digits has no views"):
        train_students(request(Cache.open(str(tmp_path / "cache")), tmp_path, student(), views=2))


def test_a_loss_that_wants_one_true_class_is_refused_by_name(cache: Cache) -> None:
    mixing = choose_views(cache.catalogue(), ["digits"], [TAUGHT], None, allow_partial=False)
    with pytest.raises(BadRequest, match="student a: dkd, nkd wants one true class") as refused:
        check_one_class("a", Needs(one_class=frozenset({"nkd", "dkd"})), mixing)
    assert refused.value.found == "transforms pad_crop, flip, mixup, cutmix (digits/views.json)"
    assert refused.value.do == (
        "views = 0 in the student job, with plain = true in the cache job's [views]; another loss; "
        "or a cache whose [views] do not mix"
    )
    check_one_class("a", TAUGHT, mixing)
    check_one_class("a", Needs(one_class=frozenset({"dkd"})), None)


def test_a_job_with_such_a_loss_is_refused_before_the_first_step(cache: Cache, tmp_path: Path) -> None:
    decoupled = taught(objective=[{"loss": "dkd", "teacher": "toy"}])
    with pytest.raises(BadRequest, match="student a: dkd wants one true class"):
        train_students(request(cache, tmp_path, decoupled))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("residency", ["device", "stream"])
def test_a_transform_whose_code_has_changed_is_refused(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, residency: str
) -> None:
    def upside_down(images: Tensor, *_: object) -> Tensor:
        return images.flip(2)

    monkeypatch.setitem(code.TRANSFORMS, Flip, upside_down)
    found = train_students(request(cache, tmp_path, residency=residency)).errors["a"]
    assert isinstance(found, StaleCache)
    assert "inputs and transform options are the same, so a transform has changed its code" in str(found)
    assert "digits/toy/view-000/0000" in str(found)


def test_other_transforms_than_promised_are_refused(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    build(job_of(tmp_path, views(1)))
    path = tmp_path / "cache" / "digits" / "views.json"
    path.unlink()
    (tmp_path / "other").mkdir()
    build(
        job_of(tmp_path / "other", views(1, FADED)).rename(tmp_path / "other.toml"),
        cache=str(tmp_path / "cache2"),
        teachers=(),
    )
    path.write_bytes((tmp_path / "cache2" / "digits" / "views.json").read_bytes())
    found = train_students(request(Cache.open(str(tmp_path / "cache")), tmp_path)).errors["a"]
    assert "made by other transform options than views.json promises" in str(found)


def test_targets_of_every_view_are_projected(cache: Cache) -> None:
    selection = feed_of(cache, place="device").selection
    logits = 10 * 4  # float32; the statistics beside them are not read
    assert projected_bytes([(selection, TAUGHT)]) == selection.num_rows * (64 + 2 * logits)


def test_teachers_that_saw_no_plain_inputs_have_nothing_to_agree_with(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    build(job_of(tmp_path, views(1)))
    cache = Cache.open(str(tmp_path / "cache"))
    assert train_students(request(cache, tmp_path)).records[0].agreement is None
    build(job_of(tmp_path, views(1, extra="plain = true")))
    assert train_students(request(cache, tmp_path / "again")).records[0].agreement is not None


def test_a_run_is_of_its_views(cache: Cache, tmp_path: Path) -> None:
    train_students(request(cache, tmp_path, views=1))
    with pytest.raises(StaleCache, match=r"views\.count"):
        train_students(request(cache, tmp_path, views=2))


def test_a_dry_run_counts_what_a_view_takes(cache: Cache, tmp_path: Path) -> None:
    memory = dry_run(request(cache, tmp_path)).memory
    assert memory is not None
    assert memory.parts["a batch's view"] > 0
