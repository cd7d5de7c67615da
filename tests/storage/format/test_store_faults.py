"""A real S3 server behind a proxy that loses its answers: every request is made until it is answered, or exit 75."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from storage.cache import Cache
from storage.errors import BadRequest, MissingObject, StorageFailure, StoreRefused, StoreUnavailable
from storage.format.committing import write_shard
from storage.format.objects import RemoteObjects, Span
from storage.format.shards import Belonging, ShardKey, list_commits
from storage.format.stores import asking
from tests.faulty_store import FaultyStore

FAULTS = ["drop", "lose", "reset", "cut", "500", "503", "503 SlowDown", "429", "409"]


@pytest.fixture
def store(faulty: FaultyStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> RemoteObjects:
    monkeypatch.setattr("storage.format.stores.remote.CLIENT_RETRIES", 0)  # ours alone must do
    found = RemoteObjects(bucket)
    for name in "abc":
        found.put(f"d/{name}", name.encode() * 50)
    return found


Request = Callable[[RemoteObjects], object]
REQUESTS: dict[str, tuple[Request, object]] = {
    "get": (lambda s: s.get("d/a"), b"a" * 50),
    "get_ranges": (lambda s: s.get_ranges("d/a", [Span(1, 4), Span(40, 60)]), [b"aaa", b"a" * 10]),
    "put": (lambda s: (s.put("new", b"1"), s.get("new"))[1], b"1"),
    "create": (lambda s: (s.create("new", b"1"), s.get("new")), (True, b"1")),
    "create what another has": (lambda s: (s.create("d/a", b"1"), s.get("d/a")), (False, b"a" * 50)),
    "list": (lambda s: [info.path for info in s.list("d").objects], ["d/a", "d/b", "d/c"]),
    "walk": (lambda s: [info.path for info in s.walk("d")], ["d/a", "d/b", "d/c"]),
    "delete": (lambda s: (s.delete("d/a"), len(s.list("d").objects))[1], 2),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_is_made_until_it_is_answered(
    store: RemoteObjects, faulty: FaultyStore, name: str, fault: str
) -> None:
    request, expected = REQUESTS[name]
    faulty.will(fault, times=3)
    assert (request(store), faulty.times) == (expected, 0)


@pytest.mark.slow
def test_a_walk_goes_on_behind_the_pages_that_it_has_seen(store: RemoteObjects, faulty: FaultyStore) -> None:
    names = sorted(f"many/{i:04d}" for i in range(1050))  # more than a store tells in one answer
    for name in names:
        store.put(name, b"")
    faulty.will("cut", times=1, strikes=lambda method, path: "continuation-token" in path)
    assert ([info.path for info in store.walk("many")], faulty.times) == (names, 0)
    assert any("start-after" in path for _, path in faulty.asked)


@pytest.mark.slow
def test_a_store_that_never_answers_is_to_be_tried_again_and_names_what_was_asked(
    store: RemoteObjects, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 0.5)
    for verb, request in {
        "read": lambda: store.get("d/a"),
        "write": lambda: store.put("d/a", b""),
        "create": lambda: store.create("d/a", b""),
        "list": lambda: store.list("d/a"),
        "delete": lambda: store.delete("d/a"),
    }.items():
        faulty.will("503", times=10**6)
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            request()
        assert time.monotonic() - began_s < 10
        assert caught.value.exit_code == 75
        assert caught.value.what == f"cannot {verb} {store.url}/d/a: the store has not answered for 0.5 s"
        assert "503" in (caught.value.found or "")
        assert "run the same command again" in (caught.value.do or "")


REFUSED = {  # status and the store's own word: exit code, what is wrong, what to do
    "400": (1, "", "check the address and the credentials"),
    "403": (2, "it may not be written with these credentials", "check the address and the credentials"),
    "403 AccessDenied": (2, "it may not be written with these credentials", "check the address and the credentials"),
    "403 InvalidAccessKeyId": (2, "the store does not know these credentials", "export AWS_ACCESS_KEY_ID"),
    "403 SignatureDoesNotMatch": (2, "the store does not know these credentials", "export AWS_ACCESS_KEY_ID"),
    "400 ExpiredToken": (2, "or they have ended", "AWS_SESSION_TOKEN"),
    "301": (2, "the bucket lies in another region", "export AWS_REGION"),
    "400 AuthorizationHeaderMalformed": (2, "the bucket lies in another region", "export AWS_REGION"),
    "404 NoSuchBucket": (2, "there is no such bucket", "make the bucket"),
    "403 RequestTimeTooSkewed": (1, "this machine's clock is off", "set this machine's clock"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_refusal_is_told_at_once_in_words(store: RemoteObjects, faulty: FaultyStore, fault: str) -> None:
    code, what, do = REFUSED[fault]
    for verb, request in {
        "write": lambda: store.put("d/a", b""),
        "create": lambda: store.create("d/new", b""),
        "delete": lambda: store.delete("d/a"),
        "read": lambda: store.get("d/a"),
        "list": lambda: store.list("d"),
    }.items():
        faulty.will(fault, times=10**6)
        with pytest.raises(StorageFailure) as caught:
            request()
        told = caught.value
        asked = 1 + (verb == "write" and fault.startswith("404"))  # it might have been parts that are gone
        assert (told.exit_code, len(faulty.asked)) == (code, asked), told
        assert told.what.startswith(f"cannot {verb} {store.url}/d"), told
        assert (what if verb in ("write", "create", "delete") else what.replace("written", "read")) in told.what
        assert do in (told.do or "")
        assert fault.partition(" ")[2] in (told.found or "")
        for never in ("<", "\n", "retr", "http"):  # pages of the client, and what it asked
            assert never not in (told.found or ""), told.found


def test_without_credentials_that_is_told_and_not_waited_for_long(
    faulty: FaultyStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from obstore.exceptions import GenericError

    monkeypatch.setattr(asking, "PATIENCE_WITH_ROLES_S", 0.2)
    monkeypatch.setattr(asking, "_answered", set())

    def ask() -> None:  # what obstore says off a cloud; no test may depend on the network of its machine
        raise GenericError(
            "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error: error "
            "sending request\n\nDebug source:\nuri: Some(\nhttp://169.254.169.254/latest/api/token,\n), "
            'message: "No route to host"'
        )

    began_s = time.monotonic()
    with pytest.raises(StoreRefused) as caught:
        asking.asked("read", f"{bucket}/a", ask)
    assert time.monotonic() - began_s < 5
    assert (caught.value.what, caught.value.found) == (
        f"cannot read {bucket}/a: there are no credentials",
        "no connection to http://169.254.169.254: No route to host",
    )
    monkeypatch.setattr(asking, "PATIENCE_S", 0.4)
    asking.asked("read", f"{bucket}/a", lambda: b"")  # there is a role, whose service is busy from now on
    with pytest.raises(StoreUnavailable):
        asking.asked("read", f"{bucket}/b", ask)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(BadRequest) as half:
        RemoteObjects(bucket)
    assert half.value.found == "Generic S3 error: Missing SecretAccessKey"


def test_a_store_that_cannot_be_reached_says_which_host_and_why(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no.such.host.invalid")
    with pytest.raises(StoreUnavailable) as caught:
        RemoteObjects(bucket).get("a")
    assert re.fullmatch(r"no connection to http://no\.such\.host\.invalid: .+", caught.value.found or "")


def test_what_is_not_there_is_told_at_once(store: RemoteObjects, faulty: FaultyStore) -> None:
    faulty.will("503", times=0)
    with pytest.raises(MissingObject):
        store.get("d/none")
    assert len(faulty.asked) == 1


def test_no_error_tells_of_credentials(faulty: FaultyStore, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim-1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "geheim-2")
    store = RemoteObjects(bucket)
    for fault in ("403 SignatureDoesNotMatch", "400 ExpiredToken", "301"):
        faulty.will(fault, times=10**6)
        with pytest.raises(StorageFailure) as caught:
            store.put("d/a", b"")
        assert "geheim" not in f"{caught.value}{caught.value.__cause__!r}"


def test_a_cache_is_not_made_where_writes_are_not_conditional(faulty: FaultyStore, bucket: str) -> None:
    faulty.will("deaf", times=10**6)
    with pytest.raises(BadRequest) as caught:
        Cache.create(bucket)
    assert "conditional writes" in (caught.value.expected or "")
    faulty.will("none", times=0)
    made = Cache.create(bucket)
    assert Cache.open(bucket).id == made.id


def test_a_store_that_refuses_half_way_leaves_what_is_committed(faulty: FaultyStore, bucket: str) -> None:
    key, another = ShardKey("d", None, "plain", 0), ShardKey("d", None, "plain", 1)
    store = RemoteObjects(bucket)

    def write(key: ShardKey) -> None:
        row = key.shard
        written = write_shard(
            store,
            key,
            rows=(row, row + 1),
            arrays={"inputs": np.zeros((1, 4), np.uint8)},
            table=pa.table({"row": [row]}),
            about={},
            belonging=Belonging("cache", "dataset", None),
        )
        assert written is not None

    write(key)
    for refused in (".zip", ".parquet"):  # the arrays, or the commit
        faulty.will(
            "403 AccessDenied", times=10**6, strikes=lambda method, path, end=refused: method == "PUT" and end in path
        )
        with pytest.raises(StorageFailure) as caught:
            write(another)
        assert (caught.value.exit_code, "credentials" in (caught.value.do or "")) == (2, True)
        assert list(list_commits(store, "d/ingest")) == [0]
    faulty.will("none", times=0)
    write(another)
    assert list(list_commits(store, "d/ingest")) == [0, 1]
