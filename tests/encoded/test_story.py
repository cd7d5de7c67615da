"""Photographs of several sizes, kept as they come: built, asked about at another size, trained on, used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from PIL import Image

from storage.cache import Cache
from storage.errors import StaleCache
from storage.format.committing import read_ragged
from storage.format.shards import ShardKey
from storage.inputs import inputs_of
from storage.inputs.arguments import to_float
from storage.inputs.policy import FILTERS
from storage.views import PLAIN
from student_train.feed.batches import ArrayKey, Needs
from student_train.feed.order.views import EpochViews
from student_train.feed.residency import FeedPool, Place
from student_train.feed.selection import select_rows
from tests.conftest import Program
from tests.encoded.toys import dataset, seeing, train, write_photographs, write_teacher
from tests.teacher_cache.toys import build, write_job

VIEWS = """[views]
count = 2
plain = true
transforms = [
    { kind = "random_resized_crop", scale = [0.3, 0.9] }, { kind = "flip" }, { kind = "mixup", probability = 0.5 },
]
"""
SCALE, RATIO = (0.3, 0.9), (0.75, 4 / 3)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photographs, and a cache of them in which teachers of two sizes were asked."""
    folder = tmp_path_factory.mktemp("encoded")
    write_photographs(folder / "photographs")
    write_teacher(folder)
    teachers = [seeing("large", 'size = 64\nfilter = "bicubic"'), seeing("same")]
    assert build(write_job(folder, dataset(), *teachers, VIEWS)).exit_code == 0
    return folder


def names(cache: Cache, shard: int) -> list[str]:
    ingest = cache.commit(ShardKey("photographs", None, PLAIN, shard), with_table=True)
    return list(ingest.table["sample_id"].to_pylist())


def seen(cache: Cache, teacher: str, shard: int, view: str = PLAIN) -> np.ndarray:
    return cache.read_targets("photographs", teacher, shard, view, ["feature/seen"])["feature/seen"]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def by_hand(
    picture: Image.Image, side: int, resample: Image.Resampling, box: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Return what a pipeline of nothing but Pillow shows, (3, H, W)."""
    picture = picture if box is None else picture.crop(box)
    return np.asarray(picture.resize((side, side), resample)).transpose(2, 0, 1)


def test_a_cache_holds_the_bytes_of_the_files(built: Path) -> None:
    cache = Cache.open(str(built / "cache"))
    for shard in range(3):
        ingest = cache.commit(ShardKey("photographs", None, PLAIN, shard))
        rows = read_ragged(cache.objects, ingest, ["inputs"])["inputs"]
        files = [(built / "photographs" / name).read_bytes() for name in names(cache, shard)]
        assert [row.tobytes() for row in rows] == files


def test_a_teacher_of_another_size_is_shown_the_file_as_pillow_resizes_it(built: Path) -> None:
    cache = Cache.open(str(built / "cache"))
    for shard in range(3):
        for name, large, same in zip(
            names(cache, shard), seen(cache, "large", shard), seen(cache, "same", shard), strict=True
        ):
            picture = opened(built / "photographs" / name)
            assert np.array_equal(np.round(large * 255), by_hand(picture, 64, Image.Resampling.BICUBIC))
            assert np.array_equal(np.round(same * 255), by_hand(picture, 32, Image.Resampling.BILINEAR))


def rolls(sample: str, seed: int, view: int, place: int, purpose: int) -> int:
    """Return a roll, 32 bits, as FORMAT.md section 8 has it."""
    bits = 2**64 - 1

    def h(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & bits
        x = (x ^ x >> 27) * 0x94D049BB133111EB & bits
        return x ^ x >> 31

    def g(x: int) -> int:
        return h(x + 0x9E3779B97F4A7C15 & bits)

    salt = g(g(g(seed) + view & bits) + place & bits)
    return h(xxhash.xxh3_64_intdigest(sample.encode()) + g(salt + purpose & bits) & bits) >> 32


def box_of(sample: str, view: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the box of a crop in the whole picture, by floating point, as Pillow takes it."""
    areas = height * width * np.linspace(*(round(share * 2**16) for share in SCALE), 64).astype(int) / 2**16
    ratios = np.geomspace(*RATIO, 32)
    fits = [(round((a / r) ** 0.5), round((a * r) ** 0.5)) for a in areas for r in ratios]
    fits = [(h, w) for h, w in fits if 1 <= h <= height and 1 <= w <= width]
    h, w = fits[rolls(sample, 0, view, 0, 0) * len(fits) >> 32]
    top = rolls(sample, 0, view, 0, 1) * (height - h + 1) >> 32
    left = rolls(sample, 0, view, 0, 2) * (width - w + 1) >> 32
    return left, top, left + w, top + h


def test_both_sizes_see_the_same_box_of_the_whole_picture(built: Path) -> None:
    cache, alone = Cache.open(str(built / "cache")), 0
    for view in (0, 1):
        large, same = (seen(cache, teacher, 0, f"view-{view:03d}") for teacher in ("large", "same"))
        for place, name in enumerate(names(cache, 0)):
            if rolls(name, 0, view, -2 % 2**64, 0) >> 8 < 2**23:  # mixed with another
                continue
            alone += 1
            picture = opened(built / "photographs" / name)
            box = box_of(name, view, *picture.size)
            flipped = rolls(name, 0, view, 1, 0) >> 8 < 2**23
            for shown, side, resample in ((large, 64, Image.Resampling.BICUBIC), (same, 32, Image.Resampling.BILINEAR)):
                expected = by_hand(picture, side, resample, box)
                expected = expected[:, :, ::-1] if flipped else expected
                assert np.array_equal(np.round(shown[place] * 255), expected), (name, view, side)
    assert 4 < alone < 20


@pytest.mark.parametrize("views", [0, 2])
def test_a_stream_and_resident_rows_end_at_the_same_weights(built: Path, tmp_path: Path, views: int) -> None:
    streamed, resident = (train(built / "cache", tmp_path / at, at, views=views) for at in ("stream", "device"))
    assert streamed == resident


@pytest.mark.parametrize("place", ["stream", "device"])
def test_a_batch_shows_what_the_teacher_saw_of_each_of_its_rows(built: Path, place: Place) -> None:
    cache, key = Cache.open(str(built / "cache")), ArrayKey("same", "feature/seen")
    needs, views = Needs(features=frozenset({key})), cache.views("photographs")
    assert views is not None
    selection = select_rows(cache.samples(), "photographs", needs, views=EpochViews(views, 2))
    feed = FeedPool(cache, torch.device("cpu"), place=place, window_shards=2).feed(selection, needs)
    for epoch in (0, 1):
        batches = list(feed.shuffled(5, seed=0, epoch=epoch))
        assert sum(len(batch.shown) for batch in batches) == 24
        assert all(torch.equal(batch.features[key], to_float(batch.shown)) for batch in batches)


@pytest.mark.parametrize("views", [0, 2])
def test_a_filter_that_resizes_otherwise_is_noticed_of_the_teacher_whose_it_is(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int
) -> None:
    monkeypatch.setitem(FILTERS, "bicubic", Image.Resampling.LANCZOS)  # as another Pillow might
    with pytest.raises(StaleCache, match=r"photographs/large/.* shows other images than the teacher saw"):
        train(built / "cache", tmp_path / "large", "stream", views=views)
    train(built / "cache", tmp_path / "same", "stream", "same", views=views)  # its filter is another


def test_labels_alone_are_trained_on_the_same_crops(built: Path, tmp_path: Path) -> None:
    streamed, resident = (train(built / "cache", tmp_path / at, at, None, views=2) for at in ("stream", "device"))
    assert streamed == resident != train(built / "cache", tmp_path / "plain", "device", None, views=0)


def test_encoded_pictures_are_the_pixels_that_would_have_been_stored(built: Path, tmp_path: Path) -> None:
    (tmp_path / "photographs").symlink_to(built / "photographs")
    assert build(write_job(tmp_path, dataset(""))).exit_code == 0
    pixels, encoded = (Cache.open(str(folder / "cache")) for folder in (tmp_path, built))
    kind, every = inputs_of(encoded.dataset("photographs")), np.arange(10)
    stored = {
        name: row
        for shard in range(3)
        for name, row in zip(names(pixels, shard), pixels.read_inputs("photographs", shard), strict=True)
    }
    for shard in range(3):
        rows, ids = encoded.read_rows("photographs", shard), names(encoded, shard)
        assert np.array_equal(kind.shown(rows, every[: len(ids)]).numpy(), np.stack([stored[name] for name in ids]))


def test_its_student_is_evaluated_and_predicts(program: Program, built: Path, tmp_path: Path) -> None:
    train(built / "cache", tmp_path / "runs", "stream", views=0)
    run, evaluated = tmp_path / "runs/small", []
    for rows in (["photographs", "--cache", built / "cache"], [built / "photographs"]):
        ended = program("student", "eval", run, *rows, "--json")
        assert ended.code == 0, ended.err
        evaluated.append(ended.out)
    ended = program("student", "predict", run, built / "photographs", "-o", tmp_path / "out.csv")
    assert (ended.code, len((tmp_path / "out.csv").read_text().splitlines())) == (0, 25)
    assert figures(evaluated[0]) == figures(evaluated[1])


def figures(told: str) -> dict[str, Any]:
    said = json.loads(told)
    return {key: value for key, value in said.items() if key in ("accuracy", "rows", "macro_f1")}
