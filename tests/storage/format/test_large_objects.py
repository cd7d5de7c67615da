"""Objects of many megabytes, which go to a store in parts: whole under their name or not there at all."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable

import pytest

from storage.errors import MissingObject, StorageFailure
from storage.format.objects import RemoteObjects
from tests.faulty_store import FaultyStore

LARGE = bytes(range(256)) * 50_000  # 12.8 MB, in three parts
LAST_PART = "partNumber=3"


@pytest.fixture
def store(faulty: FaultyStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> RemoteObjects:
    monkeypatch.setattr("storage.format.stores.remote.CLIENT_RETRIES", 0)  # ours alone must do
    return RemoteObjects(bucket)


def unfinished(server: str) -> int:
    """Return how many uploads in parts the server knows that have not ended."""
    with urllib.request.urlopen(f"{server}/stillroom?uploads") as answer:
        return int(answer.read().count(b"<Upload>"))


def test_what_is_written_goes_in_parts_and_what_is_created_at_once(store: RemoteObjects, faulty: FaultyStore) -> None:
    faulty.will("none", times=0)
    store.put("a", LARGE)
    assert sum("partNumber=" in path for _, path in faulty.asked) == 3
    faulty.will("none", times=0)
    assert (store.create("b", LARGE), store.create("b", LARGE[::-1]), store.create("a", LARGE[::-1])) == (
        True,
        False,
        False,
    )
    assert not any("upload" in path for _, path in faulty.asked)  # a condition holds for one request
    assert (store.get("a"), store.get("b")) == (LARGE, LARGE)


FAULTS: list[tuple[str, Callable[[str, str], bool]]] = [
    ("the first request", lambda method, path: path.endswith("uploads=")),
    ("a part", lambda method, path: LAST_PART in path),
    ("the last request", lambda method, path: method == "POST" and "uploadId" in path),
]


@pytest.mark.parametrize("fault", ["drop", "lose", "503"])
@pytest.mark.parametrize(("what", "strikes"), FAULTS, ids=[what for what, _ in FAULTS])
def test_an_upload_whose_answers_are_lost_is_made_until_it_is_whole(
    store: RemoteObjects, faulty: FaultyStore, what: str, strikes: Callable[[str, str], bool], fault: str
) -> None:
    faulty.will(fault, 1, strikes)
    store.put("a", LARGE)
    assert (store.get("a"), faulty.times) == (LARGE, 0)


def test_an_upload_that_breaks_off_leaves_what_was_there_and_no_parts_of_it(
    store: RemoteObjects, faulty: FaultyStore, s3_server: str
) -> None:
    store.put("old", b"old")
    before = unfinished(s3_server)
    faulty.will("403", 10**6, lambda method, path: LAST_PART in path)
    for name in ("new", "old"):
        with pytest.raises(StorageFailure):
            store.put(name, LARGE)
    assert store.get("old") == b"old"
    with pytest.raises(MissingObject):
        store.get("new")
    assert [info.path for info in store.walk()] == ["old"]
    assert unfinished(s3_server) == before
