"""A disk that refuses: what a build can do without is done without, what stands in its way is named."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from storage.errors import StorageFailure
from storage.format import objects
from storage.format.stores import local
from teacher_cache.building import stages
from tests.teacher_cache.conftest import Built
from tests.teacher_cache.toys import Silent, build


@pytest.fixture
def kitchen(built: Built, tmp_path: Path) -> Path:
    """Return a folder with a job and its whole cache, to be changed."""
    return Path(shutil.copytree(built.folder, tmp_path / "kitchen"))


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every write of an object."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(local, "open_new", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)


@pytest.mark.parametrize("lost", [(), ("ledger",)], ids=["with a ledger", "without"])
def test_a_whole_cache_on_a_read_only_disk_is_built(kitchen: Path, lost: tuple[str, ...], read_only: None) -> None:
    for name in lost:
        shutil.rmtree(kitchen / "cache" / name)
    watcher = Silent()
    report = build(kitchen / "job.toml", watcher=watcher)
    assert (report.exit_code, report.built, report.present, report.failed) == (0, 0, 6, [])
    assert len(watcher.notes) == len(lost)
    assert [note for note in watcher.notes if "the ledger was not written (Read-only file system)" not in note] == []


def test_a_ledger_that_cannot_be_written_fails_no_shard(kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(kitchen / "cache")
    monkeypatch.setattr(stages, "REMEMBER_EVERY_SHARDS", 2)
    create = objects.LocalObjects.create

    def full(self: objects.LocalObjects, path: str, data: bytes) -> bool:
        if path.startswith("ledger/"):
            raise StorageFailure(f"cannot write {path}", found="No space left on device")
        return create(self, path, data)

    monkeypatch.setattr(objects.LocalObjects, "create", full)
    watcher = Silent()
    report = build(kitchen / "job.toml", watcher=watcher)
    assert (report.exit_code, report.built) == (0, 6)
    (note,) = set(watcher.notes)
    assert "the ledger was not written (No space left on device)" in note


def test_a_long_build_remembers_what_it_has_written_so_far(kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(kitchen / "cache")
    monkeypatch.setattr(stages, "REMEMBER_EVERY_SHARDS", 2)
    seen = []
    monkeypatch.setattr(stages.Stages, "end", lambda self, *_: seen.append(self.cache.catalogue().ledger().new))
    build(kitchen / "job.toml")
    assert seen == [0]


def test_an_empty_folder_where_a_commit_belongs_is_named(kitchen: Path) -> None:
    commit = kitchen / "cache/digits/toy/plain/00001.parquet"
    commit.unlink()
    commit.mkdir()
    with pytest.raises(StorageFailure) as caught:
        build(kitchen / "job.toml")
    assert (caught.value.what, caught.value.found) == (f"cannot write {commit}", "a folder has this name")
    commit.rmdir()
    assert build(kitchen / "job.toml").built == 1
