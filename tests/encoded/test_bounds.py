"""What is bounded: pictures that are decoded at a time, bytes of a shard; and the boxes of a crop, found quickly."""

from __future__ import annotations

import threading
import time
import tracemalloc
from math import isqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.datasets import AnySource, Source
from storage.digests import digest
from storage.inputs.encoded import PROVEN_SHARDS, ROOM_BYTES, Decoding, proven, proven_bytes
from storage.views.boxes import BOX_AREAS, BOX_RATIOS, box_sizes
from storage.views.numbers import spread
from student_train.feed.batches import Needs
from student_train.feed.residency import Residency
from student_train.feed.selection import select_rows
from student_train.preparing.weighing.feed_memory import FedRows, feed_bytes
from teacher_cache.building.memory import project_worker
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.building.sources.pictures import most_kept_bytes, rows_of_kept
from teacher_cache.building.survey import prepare_build
from tests.encoded.toys import dataset, seeing, write_photographs, write_teacher
from tests.teacher_cache.toys import build, write_job


def test_pictures_wait_until_there_is_room_and_a_larger_one_until_it_is_alone() -> None:
    decoding, lock, held, most, alone = Decoding(2), threading.Lock(), [], [0], []

    def decode(num_bytes: int) -> None:
        with decoding.room(num_bytes):
            with lock:
                held.append(num_bytes)
                most[0] = max(most[0], sum(held) if len(held) > 1 else 0)
                alone.append((num_bytes, len(held)))
            time.sleep(0.002)
            with lock:
                held.remove(num_bytes)

    sizes = [ROOM_BYTES, ROOM_BYTES // 2, 5 * ROOM_BYTES, ROOM_BYTES // 3] * 4
    workers = [threading.Thread(target=decode, args=(size,)) for size in sizes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(alone) == len(sizes)
    assert ROOM_BYTES < most[0] <= decoding.most_bytes == 2 * ROOM_BYTES
    assert {count for size, count in alone if size > decoding.most_bytes} == {1}


def test_what_a_process_knows_of_compared_pictures_is_within_what_a_dry_run_counts() -> None:
    tracemalloc.start()
    proven.cache_clear()
    before = tracemalloc.get_traced_memory()[0]
    for shard in range(5000):
        proven(digest(str(shard).encode()) + digest(b"meaning"), 256)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    proven.cache_clear()
    assert 0.5 * proven_bytes([256] * 5000) < taken < proven_bytes([256] * 5000)
    assert proven_bytes([1] * (PROVEN_SHARDS + 1)) == proven_bytes([1] * PROVEN_SHARDS)


def test_a_shard_of_files_is_as_large_as_they_are(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs", 24)
    job = write_job(tmp_path, dataset())
    assert build(job).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    stored = [len(cache.read_rows("photographs", shard).flat_T) for shard in range(3)]  # type: ignore[union-attr]
    read = read_job(job, CacheJob)
    prepared = prepare_build(BuildRequest(read.cache, str(job), read.sources, ())).stages[0].dataset
    assert most_kept_bytes(prepared.source, prepared.spec, prepared.rows) == max(stored)
    files = prepared.source.files()
    assert rows_of_kept(prepared.source, prepared.spec, files) == 2**28 // (sum(stored) // 24)
    anew = source('inputs = "encoded"\nreencode = "webp"\nshorter_side = 100', tmp_path)
    assert rows_of_kept(anew, prepared.spec, files) == 2**28 // (3 * 2 * 100 * 100)


def test_a_trainings_bound_counts_each_shard_of_pictures_once(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs", 24)
    assert build(write_job(tmp_path, dataset())).exit_code == 0
    needs = Needs(labels=True, soft=frozenset())
    selection = select_rows(Cache.open(str(tmp_path / "cache")).samples(), "photographs", needs)
    rows = FedRows(selection, needs, window_shards=2, batch_size=4)
    for place in ("stream", "host"):  # rows to learn from and held rows are of the same shards
        held = feed_bytes([rows, rows], Residency(place, 0, ""), torch.device("cpu")).host
        assert held["which pictures were compared"] == proven_bytes([10, 10, 4])


def source(extra: str, folder: Path) -> Source:
    """Return the source of a job's section."""
    import tomllib

    (section,) = tomllib.loads(dataset(extra))["dataset"]
    return TypeAdapter(AnySource).validate_python(section | {"path": str(folder / "photographs")})


def test_a_dry_run_tells_what_pictures_hold_at_a_teachers_own_size(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs", 12)
    write_teacher(tmp_path)
    told = {}
    for extra in ("", 'inputs = "encoded"'):
        for size in (32, 320):
            job = write_job(tmp_path, dataset(extra), seeing("large", f"size = {size}"), cache=f"c-{size}-{len(extra)}")
            read = read_job(job, CacheJob)
            request = BuildRequest(read.cache, str(job), read.sources, tuple(read.teacher), threads=3)
            told[extra, size] = project_worker(prepare_build(request), 0)
    encoded = {size: told['inputs = "encoded"', size] for size in (32, 320)}
    assert [each.source for each in encoded.values()] == [3 * ROOM_BYTES + proven_bytes([10, 2])] * 2
    assert told["", 32].source == 0
    # ten rows of a shard, in three copies of two shards
    features = told["", 320].shards - told["", 32].shards
    assert encoded[320].shards - encoded[32].shards - features == 2 * 3 * 10 * 3 * (320**2 - 32**2)


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (375, 500, (0.08, 1.0), (0.75, 4 / 3)),
        (33, 33, (0.25, 0.25), (1.0, 1.0)),  # sides of 16.5, which floats cannot round
        (1, 4000, (0.5, 1.0), (0.5, 2.0)),
    ],
)
def test_boxes_are_those_of_integers(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    least, most = (round(share * 2**16) for share in scale)
    expected = []
    for i in range(BOX_AREAS):
        area = height * width * (least + (most - least) * i // (BOX_AREAS - 1))
        for width_over_height in spread(*ratio, BOX_RATIOS):
            by_width, by_height = (
                isqrt(int(x)) + 128 >> 8 for x in (area * width_over_height, area / width_over_height)
            )
            if 1 <= by_height <= height and 1 <= by_width <= width:
                expected.append([by_height, by_width])
    assert np.array_equal(box_sizes(height, width, scale, ratio), expected or [[height, width]])
