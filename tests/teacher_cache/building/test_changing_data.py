"""Data that change while they are read: a shard holds what was planned, or the build says that it cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.errors import MissingSource
from teacher_cache.building import runners
from tests.teacher_cache.toys import build, write_job

ARRAYS = '[[dataset]]\nname = "d"\nkind = "arrays"\npath = "x.npy"\nrows_per_shard = 4\n'
FACTORY = '[[dataset]]\nname = "d"\nkind = "factory"\nfactory = "data.py:make"\nrows_per_shard = 4\n'
DATA = """
import pathlib, numpy as np
HERE = pathlib.Path(__file__).parent
class Data:
    classes = ["a"]
    def __init__(self):
        self.value = int((HERE / "value").read_text())
        self.version = str(self.value)
    def __len__(self): return 8
    def __getitem__(self, i): return {"input": np.full((2, 2), self.value, np.uint8), "label": 0}
def make(): return Data()
"""


def values(folder: Path) -> list[int]:
    cache = Cache.open(str(folder / "cache"))
    return sorted({int(v) for shard in cache.committed("d") for v in cache.read_inputs("d", shard).flatten()})


def after_the_first_shard(act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something between the first piece of work of a build and the second."""
    real, done = runners.perform, []

    def perform(work: Any) -> Any:
        result = real(work)
        if not done:
            act()
        done.append(work)
        return result

    monkeypatch.setattr(runners, "perform", perform)
    monkeypatch.setattr(runners, "INLINE_THREADS", 1)


def test_a_file_that_changes_during_a_build_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.full((12, 2, 2), 1, np.uint8))
    after_the_first_shard(lambda: np.save(tmp_path / "x.npy", np.full((12, 2, 2), 2, np.uint8)), monkeypatch)
    with pytest.raises(MissingSource, match=r"x.npy of dataset d changed during the build"):
        build(write_job(tmp_path, ARRAYS))
    assert values(tmp_path) == [1]


def test_a_file_that_changes_while_a_shard_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage.datasets.arrays import ArraysSource

    np.save(tmp_path / "x.npy", np.full((4, 2, 2), 1, np.uint8))
    real = ArraysSource.read

    def read(self: ArraysSource, *where: Any) -> Any:
        for sample in real(self, *where):
            yield sample
            (tmp_path / "x.npy").touch()

    monkeypatch.setattr(ArraysSource, "read", read)
    with pytest.raises(MissingSource, match="changed during the build"):
        build(write_job(tmp_path, ARRAYS))
    assert values(tmp_path) == []


def test_a_dataset_of_a_later_version_is_made_anew_in_a_thread_that_lives_on(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "value").write_text("1")
    (source,) = read_job(write_job(tmp_path, FACTORY), CacheJob).dataset
    first = source.look_at("factory")
    (tmp_path / "value").write_text("2")  # by another job, which plans in a process of its own
    source.check_unchanged("factory", first.size, first.version.removesuffix("1") + "2")
    (sample,) = source.read("factory", 0, 1)
    assert np.unique(sample.payload).tolist() == [2]  # type: ignore[arg-type]


def test_a_dataset_that_is_another_after_it_was_planned_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "value").write_text("1")

    def edit() -> None:
        (tmp_path / "data.py").write_text(DATA + "more = 1\n")

    after_the_first_shard(edit, monkeypatch)
    with pytest.raises(MissingSource, match="changed during the build"):
        build(write_job(tmp_path, FACTORY))
