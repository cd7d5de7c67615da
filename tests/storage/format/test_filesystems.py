"""What a file system lacks is done without where nothing is lost, and named where something would be."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from storage.errors import BadRequest, StorageFailure
from storage.format import filesystems
from storage.format.filesystems import check_place, lock
from storage.format.objects import LocalObjects


def refusing(code: int) -> Any:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.fixture(params=[errno.ENOSYS, errno.EPERM, errno.ENOTSUP], ids=errno.errorcode.get)
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(request.param))


def test_a_name_is_created_once_without_hard_links(objects: LocalObjects, no_links: None) -> None:
    assert (objects.create("a/b", b"1"), objects.create("a/b", b"2"), objects.get("a/b")) == (True, False, b"1")
    assert [info.path for info in objects.walk()] == ["a/b"]


def test_of_many_at_once_exactly_one_wins_without_hard_links(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.ENOSYS))
    with ThreadPoolExecutor(8) as pool:
        for name in map(str, range(20)):
            won = list(pool.map(lambda i, name=name: objects.create(name, bytes([i])), range(8)))
            assert sum(won) == 1
            assert objects.get(name) == bytes([won.index(True)])


@pytest.mark.parametrize("code", [None, errno.ENOSYS])
def test_what_is_no_file_where_one_belongs_is_named(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    if code is not None:
        monkeypatch.setattr(os, "link", refusing(code))
    (Path(objects.url) / "folder").mkdir(parents=True)
    (Path(objects.url) / "link").symlink_to("nowhere")
    for name, found in (("folder", "a folder has this name"), ("link", "a link to nothing has this name")):
        with pytest.raises(StorageFailure) as caught:
            objects.create(name, b"1")
        assert (caught.value.what, caught.value.found) == (f"cannot write {objects.url}/{name}", found)
        assert "delete it" in str(caught.value.do)


def test_without_links_and_without_such_a_rename_it_is_refused(
    objects: LocalObjects, no_links: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystems, "_rename_once", refusing(errno.ENOTSUP))
    with pytest.raises(StorageFailure) as caught:
        objects.create("a", b"1")
    assert caught.value.do is not None
    assert "hard links" in caught.value.do
    assert list(objects.walk()) == []


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP], ids=errno.errorcode.get)
def test_folders_that_cannot_be_synced_are_left_so(
    objects: LocalObjects, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: refusing(code)() if os.path.isdir(f"/proc/self/fd/{fd}") else real(fd))
    objects.put("deep/er/a", b"1")
    assert objects.get("deep/er/a") == b"1"


def test_a_disk_that_fails_is_no_disk_that_lacks(objects: LocalObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(StorageFailure):
        objects.put("a", b"1")


def test_a_place_that_cannot_be_looked_at_or_fails_for_now_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRequest) as long:
        check_place(tmp_path / ("a" * 300) / "file")
    assert long.value.do == "name a shorter one"
    monkeypatch.setattr(tempfile, "TemporaryFile", refusing(errno.ESTALE))
    with pytest.raises(StorageFailure) as stale:  # not the request's fault
        check_place(tmp_path / "file")
    assert stale.value.exit_code == 1
    monkeypatch.setattr(tempfile, "TemporaryFile", refusing(errno.EROFS))
    with pytest.raises(BadRequest):
        check_place(tmp_path / "file")


HOLD = """
import sys
from storage.format.filesystems import lock
with open(sys.argv[1], "w") as file:
    print(lock(file), flush=True)
    input()
"""
NO_FLOCK = "import errno, fcntl\ndef flock(*_): raise OSError(errno.ENOLCK, 'no locks')\nfcntl.flock = flock\n"


@pytest.mark.parametrize("before", ["", NO_FLOCK], ids=["flock", "POSIX lock"])
def test_a_lock_holds_against_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    if before:
        monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    command = [sys.executable, "-c", before + HOLD, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with open(tmp_path / "lock", "w") as file, pytest.raises(BlockingIOError):
            lock(file)
        other.communicate("\n")
    with open(tmp_path / "lock", "w") as file:
        assert lock(file)


def test_a_disk_without_any_lock_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    monkeypatch.setattr(fcntl, "lockf", refusing(errno.ENOLCK))
    with open(tmp_path / "lock", "w") as file:
        assert not lock(file)
