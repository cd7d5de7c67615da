"""Listings of a hundred thousand objects, a thousand at a time, and none of them asked for before it is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.format.objects import RemoteObjects
from tests.s3_folder import FolderStore, s3_folder, variables

MANY = 100_000


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RemoteObjects, FolderStore]]:
    """Yield a store whose folder `d/e` has so many objects, which share one file, and what it is asked."""
    (tmp_path / "d/e").mkdir(parents=True)
    for name in ("d/a", "d/z"):
        (tmp_path / name).write_bytes(b"1")
    with s3_folder(tmp_path) as (address, known):
        for name, value in variables(address).items():
            monkeypatch.setenv(name, value)
        known.names[1:1] = [f"d/e/{i:07d}" for i in range(MANY)]
        monkeypatch.setattr(FolderStore, "file", lambda store, name: tmp_path / "d/a")
        yield RemoteObjects("s3://bucket"), known


@pytest.mark.slow
def test_all_are_listed_and_pages_are_asked_for_as_they_are_needed(many: tuple[RemoteObjects, FolderStore]) -> None:
    store, known = many
    for count, info in enumerate(store.walk("d/e")):
        assert info.path == f"d/e/{count:07d}"
        assert known.pages <= count // 1000 + 3  # what is asked for ahead is held
    assert (count + 1, known.pages) == (MANY, MANY // 1000)


@pytest.mark.slow
def test_a_folder_is_listed_without_what_lies_deeper(many: tuple[RemoteObjects, FolderStore]) -> None:
    store, known = many
    listing = store.list("d")
    assert ([info.path for info in listing.objects], listing.folders) == (["d/a", "d/z"], ["d/e"])
    assert known.pages == 1
    assert sum(1 for _ in store.versions("d/e", re.compile(r"\d{7}"))) == MANY
