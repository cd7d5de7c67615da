"""Students trained from an object store that loses answers, and one that stops to answer in the middle."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from storage.cache import Cache
from storage.errors import StoreUnavailable
from storage.format.objects import open_objects
from storage.format.stores import asking
from student_train.running.train import train_students
from tests.faulty_store import FaultyStore
from tests.student_train.toys import Recipe, request_of, student, write_cache

pytestmark = pytest.mark.slow

STREAM = {"residency": "stream", "window_shards": 2}


@pytest.fixture
def folder(tmp_path: Path, bucket: str) -> Path:
    """Return a cache in a folder, of which `bucket` has a copy."""
    write_cache(tmp_path / "cache", Recipe(rows=256, rows_per_shard=16))
    here, there = open_objects(str(tmp_path / "cache")), open_objects(bucket)
    for info in here.walk():
        there.put(info.path, here.get(info.path))
    return tmp_path


def weights(folder: Path, cache: Cache, name: str) -> bytes:
    request = request_of(cache, folder / name, student(epochs=2), **STREAM)
    assert train_students(request).exit_code == 0
    return (folder / name / "a" / "student.safetensors").read_bytes()


def test_a_student_ends_at_the_same_weights_whatever_answers_are_lost(
    folder: Path, bucket: str, faulty: FaultyStore
) -> None:
    count = itertools.count()
    faulty.will("cut", times=10**6, strikes=lambda method, path: next(count) % 3 == 2)
    lossy = weights(folder, Cache.open(bucket), "lossy")
    assert faulty.times < 10**6 - 10
    assert lossy == weights(folder, Cache.open(str(folder / "cache")), "here")


def test_a_student_whose_store_stops_to_answer_is_not_failed_and_goes_on_when_it_does(
    folder: Path, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 0.5)
    cache = Cache.open(bucket)
    whole = weights(folder, cache, "whole")
    requests = len(faulty.asked)
    count = itertools.count()
    faulty.will("503", times=10**6, strikes=lambda method, path: next(count) > requests * 2 // 3)
    with pytest.raises(StoreUnavailable) as caught:
        weights(folder, Cache.open(bucket), "broken")
    assert caught.value.exit_code == 75
    assert not list((folder / "broken").rglob("run.json"))
    faulty.times = 0
    assert weights(folder, Cache.open(bucket), "broken") == whole
