"""Rows on their way to a CUDA device: run where one is, skipped with a reason elsewhere."""

from __future__ import annotations

import pytest
import torch

from storage.cache import Cache
from student_train.feed.batches import Batch
from student_train.feed.feed import Feed
from student_train.feed.order import Cut
from student_train.feed.residency import FeedPool, Place, choose_residency
from student_train.feed.selection import select_rows
from tests.student_train.feed.test_feed import ALL, assert_same
from tests.student_train.feed.test_sending import feed_threads
from tests.student_train.toys import Recipe, write_cache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PLACES: tuple[Place, ...] = ("device", "host", "stream")
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return a cache whose inputs are wide enough to be gathered, and to take a while to be copied."""
    return write_cache(tmp_path_factory.mktemp("cache"), Recipe(rows=1000, shape=(3, 64, 64)))


def feed_of(cache: Cache, place: Place, device: torch.device = CUDA) -> Feed:
    selection = select_rows(cache.samples(), "toy/train", ALL)
    return FeedPool(cache, device, place=place, window_shards=4).feed(selection, ALL)


def on_cpu(batch: Batch) -> Batch:
    """Return a copy of what the students would see, made when they would."""
    return Batch(
        batch.shown.cpu(),
        None if batch.labels_B is None else batch.labels_B.cpu(),
        {
            teacher: type(encoded)(
                encoded.encoding, encoded.num_classes, {name: values.cpu() for name, values in encoded.arrays.items()}
            )
            for teacher, encoded in batch.targets.items()
        },
        {key: values.cpu() for key, values in batch.features.items()},
    )


@pytest.mark.parametrize("place", PLACES)
def test_a_gpu_is_given_the_batches_of_a_cpu(cache: Cache, place: Place) -> None:
    expected = list(feed_of(cache, "device", torch.device("cpu")).shuffled(64, seed=1, epoch=2))
    found = []
    for batch in feed_of(cache, place).shuffled(64, seed=1, epoch=2):
        assert batch.inputs.device.type == "cuda"
        found.append(on_cpu(batch))
    assert_same(found, expected)


@pytest.mark.parametrize("place", ["host", "stream"])
def test_a_batch_stays_as_it_is_while_later_ones_are_copied(cache: Cache, place: Place) -> None:
    expected = list(feed_of(cache, "device", torch.device("cpu")).shuffled(16, seed=1, epoch=2))
    kept = list(feed_of(cache, place).shuffled(16, seed=1, epoch=2))  # all alive at once, none synchronised
    assert_same([on_cpu(batch) for batch in kept], expected)


@pytest.mark.parametrize("place", ["host", "stream"])
def test_memory_of_a_batch_is_not_reused_before_its_step_is_done(cache: Cache, place: Place) -> None:
    expected = [
        batch.shown.double().sum().item()
        for batch in feed_of(cache, "device", torch.device("cpu")).shuffled(16, seed=1, epoch=2)
    ]
    busy = torch.randn(4096, 4096, device=CUDA)
    sums = []
    for batch in feed_of(cache, place).shuffled(16, seed=1, epoch=2):
        busy = busy @ busy / 64  # the step's stream lags behind the copies
        sums.append(batch.shown.double().sum())
    assert torch.stack(sums).tolist() == expected


@pytest.mark.parametrize("place", PLACES)
def test_a_shared_pass_gives_each_cut_what_it_would_have_alone(cache: Cache, place: Place) -> None:
    feed = feed_of(cache, place)
    cuts = [Cut(64), Cut(100, first_step=2)]
    fed = [(each.cut, on_cpu(each.batch)) for each in feed.shared(cuts, seed=0, epoch=0)]
    for number, cut in enumerate(cuts):
        alone = [on_cpu(b) for b in feed.shuffled(cut.batch_size, seed=0, epoch=0, first_step=cut.first_step)]
        assert_same([batch for of, batch in fed if of == number], alone)


@pytest.mark.parametrize("place", ["host", "stream"])
def test_whoever_stops_early_leaves_no_thread(cache: Cache, place: Place) -> None:
    batches = feed_of(cache, place).shuffled(16, seed=0, epoch=0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert feed_threads() == []


def test_rows_that_fit_are_on_the_gpu() -> None:
    assert choose_residency("auto", 2**20, CUDA).place == "device"
