"""Photographs kept encoded: their bytes against those of pixels, and streamed against a bare loop that decodes.

The photographs are crops of scikit-learn's two. The bare loop has the bytes in memory and as many threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.benchmarks.pairs import Figure, pairs
from tests.encoded.toys import crops
from tests.teacher_cache.toys import build, write_job

if TYPE_CHECKING:
    from student_train.feed.feed import Feed

ROWS = 1_500
SIDE, LARGE = 224, (340, 375, 420)  # sides of photographs that are not cropped yet: nine sizes
BATCH = 64
RUNS = 9
WINDOW_SHARDS = 4
VIEWS = '[views]\ncount = 1\ntransforms = [{ kind = "random_resized_crop", scale = [0.3, 1.0] }]\n'


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the share of raw bytes, and ratios of rates, images a second, plain and as views crop them."""
    small, large = folder / "small", folder / "large"
    _write(small, (SIDE,))
    _write(large, LARGE)
    _build(small, 'inputs = "encoded"\nreencode = "jpeg"')
    yield Figure(
        "bytes encoded anew at 224, quality 90 / pixels", [_stored(small) / (ROWS * 3 * SIDE * SIDE)], 1 / 6, "at most"
    )
    _build(large, 'inputs = "encoded"', VIEWS)
    for what, place, views in (
        ("streamed / bare decoding, 224", small, 0),
        ("streamed / decoding and resizing, 400", large, 0),
        ("streamed / decoding, cropping, resizing, 400", large, 1),
    ):
        feed, bare = _feed(place, views), _bare(place, crop=bool(views))
        yield Figure(what, [b / a for a, b in pairs(_epochs(feed), bare, RUNS)], 0.8, "at least")


def _write(folder: Path, sides: tuple[int, ...]) -> None:
    from PIL import Image

    draw = np.random.default_rng(0)
    for number, (name, whole) in enumerate(crops(ROWS, (max(sides), max(sides) + 1))):
        pixels = whole[: draw.choice(sides), : draw.choice(sides)]
        (folder / "photographs" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"photographs/{name}/{number:05d}.jpg", quality=90)


def _build(folder: Path, how: str, *sections: str) -> None:
    head = '[[dataset]]\nname = "photographs"\nkind = "image_folder"\npath = "photographs"\nrows_per_shard = 128\n'
    teacher = []
    if sections:  # views are of teachers
        from tests.encoded.toys import write_teacher

        write_teacher(folder)
        teacher = ['[[teacher]]\nname = "t"\nfactory = "seeing.py:build"\nweights = "seeing.safetensors"']
    build(write_job(folder, f"{head}size = {SIDE}\n{how}", *teacher, *sections))


def _stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "cache/photographs/ingest").glob("*.zip"))


def _feed(folder: Path, views: int) -> Feed:
    import torch

    from storage.cache import Cache
    from storage.inputs.encoded import decode_on
    from student_train.feed.batches import Needs
    from student_train.feed.order.views import EpochViews
    from student_train.feed.residency import FeedPool
    from student_train.feed.selection import select_rows

    decode_on(len(os.sched_getaffinity(0)))  # the build in this process had one thread; a training is its own process
    cache = Cache.open(str(folder / "cache"))
    samples = cache.samples()
    spec = cache.views("photographs")
    shown = EpochViews(spec, views) if views and spec is not None else None
    selection = select_rows(samples, "photographs", Needs(labels=True), views=shown)
    pool = FeedPool(cache, torch.device("cpu"), place="stream", window_shards=WINDOW_SHARDS)
    return pool.feed(selection, Needs(labels=True))


def _epochs(feed: Feed) -> Callable[[], float]:
    numbers = iter(range(10_000))

    def epoch() -> float:
        began = time.perf_counter()
        rows = sum(len(batch.shown) for batch in feed.shuffled(BATCH, seed=0, epoch=next(numbers)))
        assert rows == ROWS
        return time.perf_counter() - began

    return epoch


def _bare(folder: Path, *, crop: bool) -> Callable[[], float]:
    """Return what measures the seconds of decoding all photographs on as many threads, straight into an array."""
    from PIL import Image

    files = [path.read_bytes() for path in sorted((folder / "photographs").rglob("*.jpg"))]
    threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    draw = np.random.default_rng(0)
    shares = draw.uniform(0.3, 1.0, len(files)) ** 0.5

    def decode(data: bytes, share: float) -> np.ndarray:
        picture = Image.open(BytesIO(data)).convert("RGB")
        if crop:
            width, height = (round(share * side) for side in picture.size)
            picture = picture.crop((0, 0, width, height))
        if picture.size != (SIDE, SIDE):
            picture = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return np.asarray(picture).transpose(2, 0, 1)

    def loop() -> float:
        began = time.perf_counter()
        shown = np.empty((len(files), 3, SIDE, SIDE), np.uint8)
        for row, pixels in enumerate(threads.map(decode, files, shares)):
            shown[row] = pixels
        return time.perf_counter() - began

    return loop
