"""The one interface of folders and object stores; every contract test runs on both."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from storage.errors import BadRequest, MissingObject, StorageFailure, StoreRefused
from storage.format.objects import TEMPORARY_PREFIX, LocalObjects, Objects, RemoteObjects, Span, open_objects


@pytest.fixture(params=["local", "bucket", pytest.param("container", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return open_objects(str(tmp_path / "root") if request.param == "local" else request.getfixturevalue(request.param))


def test_a_put_object_reads_back(store: Objects) -> None:
    store.put("a/b/c.bin", b"\x00\x01")
    assert store.get("a/b/c.bin") == b"\x00\x01"


def test_an_empty_object_reads_back(store: Objects) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""


def test_put_replaces(store: Objects) -> None:
    store.put("a", b"long old content")
    store.put("a", b"new")
    assert store.get("a") == b"new"


def test_create_writes_where_nothing_is(store: Objects) -> None:
    assert (store.create("a/b", b"one"), store.get("a/b")) == (True, b"one")


def test_create_leaves_what_is_there(store: Objects) -> None:
    store.put("a/b", b"one")
    assert (store.create("a/b", b"two"), store.get("a/b")) == (False, b"one")


def test_of_many_threads_exactly_one_creates(store: Objects) -> None:
    contenders = [f"{i}".encode() for i in range(16)]
    barrier = threading.Barrier(len(contenders))

    def contend(data: bytes) -> bool:
        barrier.wait()
        return store.create("deep/er/x", data)

    with ThreadPoolExecutor(len(contenders)) as pool:
        won = list(pool.map(contend, contenders))
    assert [data for data, mine in zip(contenders, won, strict=True) if mine] == [store.get("deep/er/x")]


def _contend(arguments: tuple[str, int, float]) -> list[int]:
    """Return the names that this process created, starting at a common moment."""
    url, number, start_s = arguments
    store = open_objects(url)
    time.sleep(max(0.0, start_s - time.time()))
    return [i for i in range(50) if store.create(f"c/{i:03d}", f"{number}".encode())]


def test_of_many_processes_exactly_one_creates_each_object(tmp_path: Path) -> None:
    with get_context("spawn").Pool(4) as pool:
        won = pool.map(_contend, [(str(tmp_path), number, time.time() + 1.0) for number in range(4)], chunksize=1)
    assert sorted(i for names in won for i in names) == list(range(50))


def test_a_missing_object_is_named(store: Objects) -> None:
    with pytest.raises(MissingObject) as caught:
        store.get("no/such")
    assert caught.value.what == f"{store.url}/no/such is not there"


def test_parts_are_read_and_are_shorter_where_an_object_ends_before(store: Objects) -> None:
    store.put("a", bytes(range(100)))
    found = store.get_ranges("a", [Span(2, 5), Span(90, 120), Span(0, 1)])
    assert found == [bytes([2, 3, 4]), bytes(range(90, 100)), b"\0"]
    with pytest.raises(MissingObject):
        store.get_ranges("b", [Span(0, 1)])


def test_a_folder_is_no_object(store: Objects) -> None:
    store.put("a/b", b"")
    with pytest.raises(MissingObject):
        store.get("a")


def test_a_listing_shows_objects_and_folders_of_one_level(store: Objects) -> None:
    for path in ("d/z", "d/a", "d/e/f", "d/e/g/h", "other"):
        store.put(path, b"12")
    listing = store.list("d")
    assert ([(info.path, info.size_bytes) for info in listing.objects], listing.folders) == (
        [("d/a", 2), ("d/z", 2)],
        ["d/e"],
    )


def test_the_top_is_listed_too(store: Objects) -> None:
    store.put("x", b"")
    store.put("d/y", b"")
    assert ([info.path for info in store.list().objects], store.list().folders) == (["x"], ["d"])


def test_a_folder_that_is_not_there_is_empty(store: Objects) -> None:
    assert store.list("nowhere") == ([], [])


def test_a_folder_does_not_show_another_that_begins_alike(store: Objects) -> None:
    store.put("cnn-2/x", b"")
    assert store.list("cnn") == ([], [])


def test_walk_yields_every_depth(store: Objects) -> None:
    paths = ["d/a", "d/e/f", "d/e/g/h"]
    for path in [*paths, "out"]:
        store.put(path, b"")
    assert sorted(info.path for info in store.walk("d")) == paths


def test_the_version_changes_with_the_content(store: Objects) -> None:
    store.put("a", b"1")
    before = store.list().objects[0].version
    store.put("a", b"22")
    assert store.list().objects[0].version != before


def test_the_age_is_of_now(store: Objects) -> None:
    store.put("a", b"1")
    assert abs(store.list().objects[0].modified_s - time.time()) < 60


def test_the_time_is_by_the_clock_that_dates_objects(store: Objects) -> None:
    store.put("a", b"1")
    assert abs(store.now_s() - store.list().objects[0].modified_s) < 60
    assert ([info.path for info in store.list().objects], [*store.leftovers()]) == (["a"], [])


def test_delete_removes(store: Objects) -> None:
    store.put("a/b", b"")
    store.delete("a/b")
    assert store.list() == ([], [])


def test_deleting_what_is_not_there_is_no_error(store: Objects) -> None:
    store.put("file", b"")
    store.delete("no/such")
    store.delete("file/below")
    assert [info.path for info in store.list().objects] == ["file"]


def test_a_store_can_travel_to_another_process(store: Objects) -> None:
    store.put("a", b"1")
    assert open_objects(pickle.loads(pickle.dumps(store.url))).get("a") == b"1"


# --- folders only


def test_temporary_files_are_never_listed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}0").write_bytes(b"half")
    assert LocalObjects(tmp_path).list() == ([], [])


def test_nothing_temporary_is_left(tmp_path: Path) -> None:
    store = LocalObjects(tmp_path)
    store.put("a", b"1")
    store.create("a", b"2")
    store.create("b", b"3")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_killed_writes_left_behind_is_yielded_at_any_depth(tmp_path: Path) -> None:
    store = LocalObjects(tmp_path)
    store.put("kept", b"")
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / f"{TEMPORARY_PREFIX}old").write_bytes(b"half")
    os.utime(tmp_path / "g" / f"{TEMPORARY_PREFIX}old", (7200,) * 2)
    assert [info[:2] + info[3:] for info in store.leftovers()] == [(f"g/{TEMPORARY_PREFIX}old", 4, 7200.0)]


def test_a_write_never_shows_half_of_itself(tmp_path: Path) -> None:
    store = LocalObjects(tmp_path)
    contents = {bytes([i]) * 300_000 for i in range(4)}
    store.put("x", next(iter(contents)))
    done = threading.Event()

    def write() -> None:
        for _ in range(8):
            for data in contents:
                store.put("x", data)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(store.get("x"))
    writer.join()
    assert seen <= contents


def test_folders_vanish_with_their_last_object(tmp_path: Path) -> None:
    store = LocalObjects(tmp_path / "root")
    store.put("a/b/c", b"")
    store.delete("a/b/c")
    assert os.listdir(tmp_path / "root") == []


def test_a_folder_deleted_while_another_writes_into_it_does_no_harm(tmp_path: Path) -> None:
    store = LocalObjects(tmp_path)

    def churn(number: int) -> None:
        for _ in range(100):
            store.put(f"a/b/{number}", b"x")
            store.delete(f"a/b/{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    store.put("a/b/last", b"x")
    assert [info.path for info in store.walk()] == ["a/b/last"]


def test_a_link_that_leads_out_is_not_deleted_through(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"")
    store = LocalObjects(tmp_path / "root")
    store.put("kept", b"")
    (tmp_path / "root" / "00000-abcdef01.zarr").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageFailure) as caught:
        store.delete("00000-abcdef01.zarr/file")
    assert (caught.value.do, os.listdir(tmp_path / "precious")) == (
        "look at the link and at what is behind it, and delete it by hand",
        ["file"],
    )


def test_a_path_that_climbs_out_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"")
    with pytest.raises(StorageFailure):
        LocalObjects(tmp_path / "root").delete("../precious")
    assert os.listdir(tmp_path) == ["precious"]


def test_a_file_where_a_folder_should_be_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailure) as caught:
        LocalObjects(tmp_path / "file").put("a", b"")
    assert caught.value.what == f"cannot write {tmp_path}/file/a"


def test_an_unwritable_folder_says_what_to_do(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        folder = tmp_path
    else:  # root may write anywhere but where the kernel itself refuses
        folder = Path("/proc/self")
    with pytest.raises(StorageFailure) as caught:
        LocalObjects(folder / "cache").put("a", b"x")
    tmp_path.chmod(0o700)
    assert (caught.value.what, caught.value.exit_code) == (f"cannot write {folder}/cache/a", 1)


def test_a_folder_of_another_user_says_what_to_do(tmp_path: Path) -> None:
    """The same as a user without rights, in a process that has given up root."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    tmp_path.chmod(0o755)
    code = (
        "import os, sys; from storage.format.objects import LocalObjects; os.setuid(65534)\n"
        "try: LocalObjects(sys.argv[1]).put('a', b'x')\n"
        "except Exception as error: print(error)"
    )
    folder = Path("/usr/share")  # readable by all, writable by root; pytest's own folders are closed to others
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"StorageFailure: cannot write {folder}/a",
        "  found     Permission denied",
        "  do        make the folder writable for this user, or name another",
    ]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder on a disk of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_says_what_to_do_and_keeps_what_is_there(full_disk: Path) -> None:
    store = LocalObjects(full_disk)
    store.put("kept", b"whole")
    with pytest.raises(StorageFailure) as caught:
        store.put("large", bytes(200_000))
    remedy = "free space on that disk, then run the same command again; what is committed stays"
    assert (caught.value.found, caught.value.do, os.listdir(full_disk)) == ("No space left on device", remedy, ["kept"])


def test_a_write_cut_short_by_a_limit_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes makes writes short and then fail, as a disk does that fills up; no mount is needed."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    code = (
        "import sys; from storage.format.objects import LocalObjects\n"
        "try: LocalObjects(sys.argv[1]).put('a', bytes(50_000))\n"
        "except Exception as error: print(error.found)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, preexec_fn=limit
    )
    assert (done.stdout, os.listdir(tmp_path)) == ("File too large\n", [])


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    open_objects(f"file://{tmp_path}").put("a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


# --- object stores only


@pytest.mark.parametrize("value", ["", "localhost:9000", "http://", "ftp://host", "http://a b"])
def test_an_address_in_the_environment_that_is_none_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen: of an empty one the store's client panics at the first request, with pages of a traceback."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(BadRequest, match="AWS_ENDPOINT_URL in the environment is no address of a store") as caught:
        open_objects("s3://bucket/cache")
    assert caught.value.found == (value or "nothing")


def test_an_unknown_scheme_is_a_bad_request() -> None:
    with pytest.raises(BadRequest) as caught:
        open_objects("nosuch://bucket/x")
    assert (caught.value.what, caught.value.expected) == (
        "cannot open nosuch://bucket/x",
        "a folder, s3://bucket/prefix, or https://…",
    )


def test_a_create_whose_answer_was_lost_still_wins(bucket: str) -> None:
    """The first PUT arrived, its answer did not; the client's own retry then meets its own object."""
    store = RemoteObjects(bucket)
    store.put("a", b"mine")
    assert store.create("a", b"mine") is True


@pytest.mark.parametrize("where", ["bucket", pytest.param("container", marks=pytest.mark.slow)])
def test_a_missing_bucket_is_an_error_that_names_it(where: str, request: pytest.FixtureRequest) -> None:
    store = RemoteObjects(request.getfixturevalue(where).replace("stillroom", "nowhere"))
    for verb, write in (("write", store.put), ("create", store.create)):
        with pytest.raises(StoreRefused) as caught:
            write("a", b"")
        assert caught.value.what == f"cannot {verb} {store.url}/a: there is no such bucket"
        assert (caught.value.found or "").startswith("404 Not Found, ")
    with pytest.raises(StoreRefused, match="cannot list"):
        store.list()
