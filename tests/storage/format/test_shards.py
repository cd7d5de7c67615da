"""A shard is whole or not there: commits, attempts, damage, kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from zarr.storage import ZipStore

from storage.errors import CorruptObject, MissingObject, NotInCache, StorageFailure, UnsupportedFormat
from storage.format.arrays import DTYPES
from storage.format.committing import copy_shard, read_arrays, read_members, read_ragged, read_row_shape, write_shard
from storage.format.objects import LocalObjects, Objects, Span, open_objects
from storage.format.sealed import seal
from storage.format.shards import Belonging, Commit, ShardKey, list_commits, read_commits
from storage.inputs.ragged import Ragged

KEY = ShardKey("digits", "cnn", "plain", 7)
ROWS = (14, 17)
ARRAYS = {"logits": np.arange(6, dtype=np.float32).reshape(3, 2), "feature/x": np.ones((3, 4), np.float16)}
TABLE = pa.table(
    {"row": pa.array(range(*ROWS), pa.int64()), "sample_id": ["a", None, "c"], "entropy": [0.5, None, 0.25]}
)
ABOUT = {"seconds": 1.5, "host": "h"}
BELONGING = Belonging("c" * 32, "d" * 32, "e" * 32)
FORMAT_2 = {"belonging": None}


def write(objects: Objects, key: ShardKey = KEY, **changes: Any) -> Commit | None:
    facts = {"rows": ROWS, "arrays": ARRAYS, "table": TABLE, "about": ABOUT, "belonging": BELONGING}
    return write_shard(objects, key, **facts | changes)


def stored_commit(objects: Objects, key: ShardKey = KEY, *, with_table: bool = True) -> Commit:
    return Commit.from_parquet(objects.get(key.commit_path), key.commit_path, with_table=with_table)


@pytest.fixture
def commit(objects: LocalObjects) -> Commit:
    commit = write(objects)
    assert commit is not None
    return commit


@pytest.fixture
def commit_2(objects: LocalObjects) -> Commit:
    """Return the commit of a shard as format 2 has it: a folder of objects."""
    commit = write(objects, **FORMAT_2)
    assert commit is not None
    return commit


# --- write, then read


def test_a_commit_reads_back(objects: LocalObjects, commit: Commit) -> None:
    assert stored_commit(objects) == commit


def test_a_proof_can_be_read_without_its_table(objects: LocalObjects, commit: Commit) -> None:
    back = stored_commit(objects, with_table=False)
    assert (len(back.table), back.members, back.about, back.belonging) == (0, commit.members, ABOUT, BELONGING)


def test_a_shard_is_two_objects_its_arrays_and_its_commit(objects: LocalObjects, commit: Commit) -> None:
    assert [info.path for info in objects.walk()] == [commit.group, commit.key.commit_path]


def test_a_commit_of_format_2_reads_back(objects: LocalObjects, commit_2: Commit) -> None:
    assert (stored_commit(objects), commit_2.whole, commit_2.belonging) == (commit_2, None, None)


def test_a_shard_of_format_2_is_an_object_for_each_member(objects: LocalObjects, commit_2: Commit) -> None:
    paths = {f"{commit_2.group}/{member.path}" for member in commit_2.members} | {KEY.commit_path}
    assert {info.path for info in objects.walk()} == paths
    assert f"{KEY.folder}/00007-{commit_2.attempt}.zarr/logits/c/0/0" in paths


def test_a_commit_lies_where_its_key_says(objects: LocalObjects, commit: Commit) -> None:
    assert (commit.key.commit_path, commit.group) == (
        "digits/cnn/plain/00007.parquet",
        f"digits/cnn/plain/00007-{commit.attempt}.zarr.zip",
    )


def test_an_ingest_lies_beside_the_teachers() -> None:
    assert ShardKey("digits", None, "plain", 123456).commit_path == "digits/ingest/123456.parquet"


@settings(max_examples=40)
@given(
    st.integers(0, 4).flatmap(
        lambda rows: st.dictionaries(
            st.sampled_from(["logits", "feature/a", "feature/b"]),
            st.sampled_from(sorted(DTYPES)).flatmap(
                lambda dtype: npst.arrays(
                    np.dtype(dtype),
                    st.lists(st.integers(0, 3), max_size=3).map(lambda rest: (rows, *rest)),
                )
            ),
            min_size=1,
        )
    )
)
def test_writing_then_reading_arrays_is_identity(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]
) -> None:
    objects = LocalObjects(tmp_path_factory.mktemp("cache"))
    rows = len(next(iter(arrays.values())))
    commit = write(objects, rows=(0, rows), arrays=arrays, table=pa.table({"row": pa.array(range(rows), pa.int64())}))
    assert commit is not None
    back = read_arrays(objects, commit, arrays)
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in back.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()
    }


def test_an_array_of_zero_features_keeps_its_shape(objects: LocalObjects) -> None:
    commit = write(objects, arrays={"feature/none": np.zeros((3, 0, 2), np.float32)})
    assert commit is not None
    assert read_arrays(objects, commit, ["feature/none"])["feature/none"].shape == (3, 0, 2)


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.float32(1)},
        {"x": np.zeros(2)},
        {"x": np.zeros((3, 1), np.complex64)},
        {"x": np.array(["a", "b", "c"])},
        {"../x": np.zeros(3)},
        {"/x": np.zeros(3)},
    ],
)
def test_arrays_that_could_not_be_read_again_are_not_written(objects: LocalObjects, arrays: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(KEY)):
        write(objects, arrays=arrays)
    assert list(objects.walk()) == []


def test_a_table_of_another_length_is_not_written(objects: LocalObjects) -> None:
    with pytest.raises(ValueError, match="the table has shape"):
        write(objects, table=TABLE.slice(1))


def test_an_array_that_is_not_there_is_named(objects: LocalObjects, commit: Commit) -> None:
    with pytest.raises(NotInCache) as caught:
        read_arrays(objects, commit, ["logits", "feature/y"])
    assert (caught.value.what, caught.value.found) == (f"{KEY} has no array feature/y", "feature/x, logits")


def test_a_shard_on_an_object_store_reads_back(bucket: str) -> None:
    objects = open_objects(bucket)
    assert write(objects) is not None
    second = write(objects)
    commit = stored_commit(objects)
    assert (second, read_arrays(objects, commit, ["logits"])["logits"].tolist()) == (None, ARRAYS["logits"].tolist())
    assert list_commits(objects, KEY.folder).keys() == {7}
    assert [info.path for info in objects.list(KEY.folder).objects] == [commit.group, KEY.commit_path]


@pytest.mark.parametrize("layout", [{}, FORMAT_2], ids=["3", "2"])
def test_the_shape_of_a_row_is_read_without_its_array(tmp_path: Path, layout: dict[str, Any]) -> None:
    arrays = {"logits": np.random.default_rng(0).random((3, 500, 7))}
    commit = write(LocalObjects(tmp_path), arrays=arrays, **layout)
    assert commit is not None
    read = []

    class Measuring(LocalObjects):
        def get(self, path: str, most_bytes: int | None = None) -> bytes:
            data = super().get(path, most_bytes)
            read.append(len(data))
            return data

        def get_ranges(self, path: str, spans: Sequence[Span]) -> list[bytes]:
            found = super().get_ranges(path, spans)
            read.extend(map(len, found))
            return found

    assert read_row_shape(Measuring(tmp_path), commit, "logits") == (500, 7)
    assert (len(read), sum(read) < 2000 < arrays["logits"].nbytes) == (1, True)
    with pytest.raises(NotInCache):
        read_row_shape(LocalObjects(tmp_path), commit, "other")
    with pytest.raises(CorruptObject, match="is not of this shard"):
        read_row_shape(LocalObjects(tmp_path), replace(commit, stop=commit.stop + 1), "logits")


@pytest.mark.parametrize("layout", [{}, FORMAT_2], ids=["3", "2"])
def test_the_same_work_gives_the_same_bytes(tmp_path: Path, layout: dict[str, Any]) -> None:
    first, second = (LocalObjects(tmp_path / name) for name in "ab")
    commits = [write(first, **layout), write(second, arrays=dict(reversed(ARRAYS.items())), **layout)]
    assert None not in commits
    one, two = (
        {info.path.replace(commit.attempt, ""): objects.get(info.path) for info in objects.walk(KEY.folder)}
        for objects, commit in zip((first, second), commits, strict=True)
        if commit is not None
    )
    del one[KEY.commit_path], two[KEY.commit_path]  # they name their attempts
    assert one == two


def test_the_same_bytes_are_written_at_any_time_of_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = write(LocalObjects(tmp_path / "now"))
    monkeypatch.setattr("time.time", lambda: 2e9)
    later = write(LocalObjects(tmp_path / "later"))
    assert (now and now.whole) == (later and later.whole)


# --- the one object, opened by others


def test_zarr_opens_the_one_object(objects: LocalObjects, commit: Commit) -> None:
    with ZipStore(objects.root / commit.group, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        found = {name: np.asarray(group[name][...]) for name in commit.array_names}  # type: ignore[index]
    assert {name: (a.dtype, a.tolist()) for name, a in found.items()} == {
        name: (a.dtype, a.tolist()) for name, a in ARRAYS.items()
    }


def test_zip_tools_and_numpy_open_the_one_object(objects: LocalObjects, commit: Commit) -> None:
    with zipfile.ZipFile(objects.root / commit.group) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(member.path for member in commit.members)
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    members = np.load(objects.root / commit.group)
    assert json.loads(members["logits/zarr.json"])["shape"] == [3, 2]


def test_a_commit_says_where_in_the_one_object_each_member_lies(objects: LocalObjects, commit: Commit) -> None:
    data = objects.get(commit.group)
    with zipfile.ZipFile(objects.root / commit.group) as archive:
        for path, begin, size_bytes, _ in commit.members:
            assert data[begin : begin + size_bytes] == archive.read(path)


class Asked(LocalObjects):
    """A disk that notes what is read of it."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.read: list[int] = []

    def get(self, path: str) -> bytes:
        data = super().get(path)
        self.read.append(len(data))
        return data

    def get_ranges(self, path: str, spans: Sequence[Span]) -> list[bytes]:
        parts = super().get_ranges(path, spans)
        self.read += map(len, parts)
        return parts


def test_only_the_arrays_that_are_needed_are_read(tmp_path: Path) -> None:
    objects = Asked(tmp_path)
    large = np.random.default_rng(0).integers(0, 256, (3, 100_000), np.uint8)
    commit = write(objects, arrays={"a": large, "logits": ARRAYS["logits"], "z": large})
    assert commit is not None
    read_arrays(objects, commit, ["logits"])
    (bytes_read,) = objects.read
    assert bytes_read < 2000


def test_neighbouring_arrays_are_read_at_once_and_what_lies_far_apart_is_not(tmp_path: Path) -> None:
    objects = Asked(tmp_path)
    large = np.random.default_rng(0).integers(0, 256, (3, 100_000), np.uint8)
    small = np.zeros((3, 2))
    commit = write(objects, arrays={"a": small, "b": small, "between": large, "c": small, "d": small})
    assert commit is not None
    read_arrays(objects, commit, ["d", "b", "a", "c"])
    assert len(objects.read) == 2


def test_an_array_and_its_offsets_lie_together(tmp_path: Path) -> None:
    objects = Asked(tmp_path)
    rows = Ragged.of([np.arange(9), np.arange(100_000) % 251, np.arange(3)], np.uint8)
    large = np.random.default_rng(0).integers(0, 256, (3, 100_000), np.uint8)
    commit = write(objects, arrays={"a": large, "inputs": rows, "offset": large, "z": large})
    assert commit is not None
    read_ragged(objects, commit, ["inputs"])
    assert len(objects.read) == 1


# --- copies


@pytest.mark.parametrize("was", [{}, FORMAT_2], ids=["from 3", "from 2"])
@pytest.mark.parametrize("becomes", [Belonging("f" * 32, "d" * 32, "e" * 32), None], ids=["to 3", "to 2"])
def test_a_copy_holds_the_same_arrays_and_says_whose_it_is(
    tmp_path: Path, was: dict[str, Any], becomes: Belonging | None
) -> None:
    source, target = LocalObjects(tmp_path / "a"), LocalObjects(tmp_path / "b")
    commit = write(source, **was)
    assert commit is not None
    assert copy_shard(source, commit, target, {"copied": True}, becomes) is not None
    copy = stored_commit(target)
    assert (copy.belonging, copy.about, copy.table) == (becomes, {"copied": True}, commit.table)
    assert {m.path: m.digest for m in copy.members} == {m.path: m.digest for m in commit.members}
    assert read_arrays(target, copy, ["logits"])["logits"].tolist() == ARRAYS["logits"].tolist()


def test_a_copy_from_format_3_is_the_same_object(tmp_path: Path) -> None:
    source, target = LocalObjects(tmp_path / "a"), LocalObjects(tmp_path / "b")
    commit = write(source)
    assert commit is not None
    copy = copy_shard(source, commit, target, {}, BELONGING)
    assert copy is not None
    assert copy.whole == commit.whole


def test_damage_is_not_copied(objects: LocalObjects, commit: Commit, tmp_path: Path) -> None:
    flip(objects, commit.group, 5)
    with pytest.raises(CorruptObject):
        copy_shard(objects, commit, LocalObjects(tmp_path / "b"), {}, BELONGING)
    assert not (tmp_path / "b").exists()


# --- attempts


def test_a_second_attempt_loses(objects: LocalObjects, commit: Commit) -> None:
    assert write(objects, arrays={"logits": np.zeros((3, 2))}) is None


def test_a_lost_attempt_deletes_its_own_group_and_nothing_else(objects: LocalObjects, commit: Commit) -> None:
    before = {info.path: objects.get(info.path) for info in objects.walk()}
    write(objects, arrays={"logits": np.zeros((3, 2))})
    assert {info.path: objects.get(info.path) for info in objects.walk()} == before


def test_of_many_attempts_at_once_one_wins_and_its_arrays_stay(objects: LocalObjects) -> None:
    barrier = threading.Barrier(6)

    def attempt(number: int) -> bool:
        barrier.wait()
        return write(objects, arrays={"logits": np.full((3, 2), number)}) is not None

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(attempt, range(6)))
    found = read_arrays(objects, stored_commit(objects), ["logits"])["logits"]
    assert (won.count(True), found.tolist(), len(objects.list(KEY.folder).objects)) == (
        1,
        np.full((3, 2), won.index(True)).tolist(),
        2,
    )


class Failing(LocalObjects):
    """A disk that fails at a chosen moment."""

    def __init__(self, root: str | Path, put: int | None = None, after_create: BaseException | None = None):
        super().__init__(root)
        self.puts_left, self.after_create = put, after_create

    def put(self, path: str, data: bytes) -> None:
        if self.puts_left == 0:
            raise StorageFailure("cannot write", found="No space left on device")
        if self.puts_left is not None:
            self.puts_left -= 1
        super().put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        won = super().create(path, data)
        if self.after_create is not None:
            raise self.after_create
        return won


@pytest.mark.parametrize(("layout", "puts"), [({}, 0), (FORMAT_2, 3)], ids=["3", "2"])
def test_a_disk_that_fills_up_is_left_as_it_was(tmp_path: Path, layout: dict[str, Any], puts: int) -> None:
    with pytest.raises(StorageFailure):
        write(Failing(tmp_path, put=puts), **layout)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("fault", [StorageFailure("cannot sync"), KeyboardInterrupt()])
def test_a_failure_just_after_the_commit_is_visible_leaves_a_whole_shard(tmp_path: Path, fault: BaseException) -> None:
    with pytest.raises(type(fault)):
        write(Failing(tmp_path, after_create=fault))
    objects = LocalObjects(tmp_path)
    assert read_arrays(objects, stored_commit(objects), ["logits"])["logits"].tolist() == ARRAYS["logits"].tolist()


def test_a_row_is_visible_if_and_only_if_its_commit_is(objects: LocalObjects, commit: Commit) -> None:
    seen = [list_commits(objects, KEY.folder).keys()]
    data = objects.get(KEY.commit_path)
    objects.delete(KEY.commit_path)
    seen.append(list_commits(objects, KEY.folder).keys())
    objects.put(KEY.commit_path, data)
    seen.append(list_commits(objects, KEY.folder).keys())
    assert seen == [{7}, set(), {7}]


def test_the_commit_comes_after_every_object(tmp_path: Path) -> None:
    order: list[str] = []

    class Watched(LocalObjects):
        def put(self, path: str, data: bytes) -> None:
            order.append("object")
            assert list_commits(self, KEY.folder) == {}
            super().put(path, data)

        def create(self, path: str, data: bytes) -> bool:
            order.append("commit")
            return super().create(path, data)

    write(Watched(tmp_path))
    write(Watched(tmp_path / "2"), **FORMAT_2)
    assert order == ["object", "commit", *["object"] * 6, "commit"]


KILLED = """
import sys
import numpy as np, pyarrow as pa
from storage.format.objects import LocalObjects
from storage.format.committing import write_shard
from storage.format.shards import Belonging, ShardKey
objects = LocalObjects(sys.argv[1])
table = pa.table({"row": pa.array(range(64), pa.int64())})
arrays = {name: np.random.default_rng(0).random((64, 2048)) for name in ("logits", "feature/a", "feature/b")}
print("ready", flush=True)
sys.stdin.readline()
for shard in range(int(sys.argv[2])):
    key = ShardKey("d", "t", "plain", shard)
    belonging = Belonging("c", "d", "e")
    write_shard(objects, key, rows=(0, 64), arrays=arrays, table=table, about={}, belonging=belonging)
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_whole_shards_only_and_a_second_run_completes(tmp_path: Path) -> None:
    expected = np.random.default_rng(0).random((64, 2048))
    chance = random.Random(0)
    cut_short = 0
    for trial in range(8):
        objects = LocalObjects(tmp_path / f"{trial}")
        command = [sys.executable, "-c", KILLED, objects.url, "12"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            process.stdin.write("\n")
            process.stdin.flush()
            moment = chance.randrange(1, 24)  # by objects written, of 24 in all: the same on a slow disk and a fast one
            while process.poll() is None and len(list(objects.walk())) < moment:
                pass
            process.send_signal(signal.SIGKILL)
        shards = list_commits(objects, "d/t/plain")
        cut_short += 0 < len(shards) < 12
        for commit in read_commits(objects, [ShardKey("d", "t", "plain", s).commit_path for s in shards]):
            arrays = read_arrays(objects, commit, commit.array_names)
            assert all(np.array_equal(array, expected) or name != "logits" for name, array in arrays.items())
        again = subprocess.run(command, input="\n", capture_output=True, text=True, check=True)
        assert (again.stdout, sorted(list_commits(objects, "d/t/plain"))) == ("ready\ndone\n", list(range(12)))
    assert cut_short > 0  # else no kill fell between two shards, and this test has shown nothing


# --- damage to a commit


def test_every_flipped_byte_of_a_commit_is_noticed(commit: Commit) -> None:
    data = commit.to_parquet()
    for i in range(len(data)):
        with pytest.raises(CorruptObject):
            Commit.from_parquet(data[:i] + bytes([data[i] ^ 0x10]) + data[i + 1 :], KEY.commit_path)


@pytest.mark.parametrize("with_table", [True, False])
def test_every_cut_of_a_commit_is_noticed(commit: Commit, with_table: bool) -> None:
    data = commit.to_parquet()
    for length in range(len(data)):
        with pytest.raises(CorruptObject):
            Commit.from_parquet(data[:length], KEY.commit_path, with_table=with_table)


def test_a_damaged_commit_is_named(commit: Commit) -> None:
    with pytest.raises(CorruptObject) as caught:
        Commit.from_parquet(commit.to_parquet()[:-1] + b"2", KEY.commit_path)
    assert (caught.value.what, caught.value.found, caught.value.do) == (
        "digits/cnn/plain/00007.parquet is not a whole commit",
        "its bytes do not match their digest",
        "cache verify CACHE --repair, then cache build JOB.toml",
    )


@pytest.mark.parametrize(
    "path", ["digits/cnn/plain/00008.parquet", "digits/cnn2/plain/00007.parquet", "igits/cnn/plain/00007.parquet"]
)
def test_a_commit_in_the_place_of_another_is_noticed(commit: Commit, path: str) -> None:
    with pytest.raises(CorruptObject) as caught:
        Commit.from_parquet(commit.to_parquet(), path)
    assert caught.value.found == "it is the commit of digits/cnn/plain/00007"


LAYOUTS = {"objects": (1, "d"), "members": (0, 1, "d")}  # what follows a path, in format 2 and in format 3
OUTSIDE = ["../../secret", "/etc/passwd", "logits/../../x", "logits//c", ""]
HOSTILE = [
    {"attempt": "../../../x"},
    {"attempt": "/etc"},
    {"attempt": 7},
    *({layout: [[path, *facts]]} for layout, facts in LAYOUTS.items() for path in OUTSIDE),
    {"objects": [["logits/c"]]},
    {"members": [["logits/c"]]},
    {"members": None},
    {"members": [["logits/c", -1, 1, "d"]]},
    {"members": [["logits/c", 0, 101, "d"]]},
    {"members": [["logits/c", 100, 1, "d"]]},
    {"members": [["logits/c", 50, -1, "d"]]},
    {"members": [["logits/c", 2.0, 1, "d"]]},
    {"members": [["logits/c", "0", 1, "d"]]},
    {"members": [["logits/c", 0, 1, None]]},
    {"object": [100]},
    {"object": [-1, "d"]},
    {"object": ["100", "d"]},
    {"object": [100, 7]},
    {"object": None},
    {"cache": None},
    {"dataset": 7},
    {"promise": None},
    {"uses": 7},
    {"objects": None},
    {"rows": [0]},
    {"rows": [14, 99]},
    {"key": ["digits", "cnn", "plain"]},
    {"key": ["digits", "cnn", "plain", "7"]},
    {"key": None},
    {"about": 3},
]


@pytest.mark.parametrize("change", HOSTILE, ids=json.dumps)
def test_a_forged_commit_is_refused(commit: Commit, change: dict[str, Any]) -> None:
    """Whoever forges a cache can make its digests agree; it must still name nothing outside its own group."""
    proof = {
        "key": KEY,
        "rows": ROWS,
        "attempt": commit.attempt,
        **BELONGING._asdict(),
        "object": [100, "d"],
        "members": [["logits/zarr.json", 0, 1, "d"]],
        "uses": [],
        "about": {},
    }
    Commit.from_parquet(seal(TABLE, proof), KEY.commit_path)  # as it is, it is one
    with pytest.raises(CorruptObject):
        Commit.from_parquet(seal(TABLE, proof | change), KEY.commit_path)


@given(st.binary(max_size=100))
def test_bytes_that_are_no_commit_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptObject):
        Commit.from_parquet(data, KEY.commit_path)


def test_an_ingest_has_no_teacher_to_promise_it(objects: LocalObjects) -> None:
    commit = write(objects, ShardKey("digits", None, "plain", 7), belonging=BELONGING)
    assert commit is not None
    with pytest.raises(CorruptObject):
        stored_commit(objects, commit.key)


def test_what_a_commit_uses_and_this_version_does_not_know_is_refused_by_name(commit: Commit) -> None:
    later = replace(commit, uses=("of_a_later_version",)).to_parquet()
    with pytest.raises(UnsupportedFormat) as caught:
        Commit.from_parquet(later, KEY.commit_path)
    assert (caught.value.what, caught.value.found) == (
        "digits/cnn/plain/00007.parquet uses what this version cannot read",
        "of_a_later_version",
    )


# --- damage to the one object


def flip(objects: LocalObjects, path: str, at: int) -> None:
    data = objects.get(path)
    (objects.root / path).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_every_flipped_byte_of_the_one_object_is_noticed_by_whoever_reads_all_of_it(
    objects: LocalObjects, commit: Commit
) -> None:
    """The zip's headers and its directory too, which no reader of ours trusts."""
    data = objects.get(commit.group)
    for i in range(len(data)):
        (objects.root / commit.group).write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(CorruptObject) as caught:
            read_members(objects, commit)
        assert caught.value.what == f"{objects.url}/{commit.group} is not what was committed"


def test_every_flipped_byte_of_an_array_is_noticed_by_whoever_reads_that_array(
    objects: LocalObjects, commit: Commit
) -> None:
    for member in commit.members:
        if not member.path.startswith(("logits/", "feature/x/")):
            continue  # of no array
        for i in range(member.begin, member.begin + member.size_bytes):
            flip(objects, commit.group, i)
            with pytest.raises(CorruptObject) as caught:
                read_arrays(objects, commit, ["logits", "feature/x"])
            assert caught.value.what == f"{objects.url}/{commit.group}/{member.path} is not what was committed"
            flip(objects, commit.group, i)


@pytest.mark.parametrize("length", [0, 1, 10, 300, -1])
def test_a_truncated_object_is_named(objects: LocalObjects, commit: Commit, length: int) -> None:
    objects.put(commit.group, objects.get(commit.group)[:length])
    with pytest.raises(CorruptObject) as caught:
        read_members(objects, commit)
    assert caught.value.what == f"{objects.url}/{commit.group} is not what was committed"


@pytest.mark.parametrize("length", [0, 10, 300])
def test_an_array_that_is_cut_off_is_named(objects: LocalObjects, commit: Commit, length: int) -> None:
    objects.put(commit.group, objects.get(commit.group)[:length])
    with pytest.raises(CorruptObject) as caught:
        read_arrays(objects, commit, ["logits"])
    assert caught.value.what.startswith(f"{objects.url}/{commit.group}/logits/")


def test_a_missing_object_is_named_and_never_zeros(objects: LocalObjects, commit: Commit) -> None:
    objects.delete(commit.group)
    for read in (lambda: read_arrays(objects, commit, ["logits"]), lambda: read_members(objects, commit)):
        with pytest.raises(MissingObject) as caught:
            read()
        assert caught.value.what == f"{objects.url}/{commit.group} is not there"


def test_an_object_swapped_with_that_of_another_shard_is_named(objects: LocalObjects, commit: Commit) -> None:
    other = write(objects, KEY._replace(shard=8), arrays=ARRAYS | {"logits": ARRAYS["logits"] + 1})
    assert other is not None
    objects.put(commit.group, objects.get(other.group))
    with pytest.raises(CorruptObject) as caught:
        read_arrays(objects, commit, ["logits"])
    assert caught.value.what == f"{objects.url}/{commit.group}/logits/c/0/0 is not what was committed"


def test_damage_to_one_array_does_not_hide_another(objects: LocalObjects, commit: Commit) -> None:
    (chunk,) = (member for member in commit.members if member.path == "feature/x/c/0/0")
    flip(objects, commit.group, chunk.begin)
    assert read_arrays(objects, commit, ["logits"])["logits"].tolist() == ARRAYS["logits"].tolist()


def test_what_a_forged_commit_says_is_where_is_not_taken_from_elsewhere(objects: LocalObjects, commit: Commit) -> None:
    """Offsets are the commit's, digests too: a member that lies elsewhere has other bytes."""
    moved = tuple(member._replace(begin=max(0, member.begin - 1)) for member in commit.members)
    with pytest.raises(CorruptObject):
        read_arrays(objects, replace(commit, members=moved), ["logits"])


def test_a_store_that_is_asked_beyond_the_end_of_an_object_tells_damage(bucket: str) -> None:
    objects = open_objects(bucket)
    commit = write(objects)
    assert commit is not None
    for length in (10, 300):
        objects.put(commit.group, objects.get(commit.group)[:length])
        with pytest.raises(CorruptObject, match="is not what was committed"):
            read_arrays(objects, commit, ["logits"])
    objects.delete(commit.group)
    with pytest.raises(MissingObject):
        read_arrays(objects, commit, ["logits"])


# --- damage to an object of format 2


def test_every_flipped_byte_of_every_object_is_noticed(objects: LocalObjects, commit_2: Commit) -> None:
    for path in (f"{commit_2.group}/{member.path}" for member in commit_2.members if "/" in member.path):
        if "feature/zarr.json" in path:
            continue  # no array; `cache verify` reads it
        data = objects.get(path)
        for i in range(0, len(data), 7):
            (objects.root / path).write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
            with pytest.raises(CorruptObject) as caught:
                read_arrays(objects, commit_2, ["logits", "feature/x"])
            assert caught.value.what == f"{objects.url}/{path} is not what was committed"
        (objects.root / path).write_bytes(data)


@pytest.mark.parametrize("length", [0, 1, 10])
def test_a_truncated_object_of_format_2_is_named(objects: LocalObjects, commit_2: Commit, length: int) -> None:
    path = f"{commit_2.group}/logits/c/0/0"
    objects.put(path, objects.get(path)[:length])
    with pytest.raises(CorruptObject) as caught:
        read_arrays(objects, commit_2, ["logits"])
    assert caught.value.what == f"{objects.url}/{path} is not what was committed"


def test_a_missing_object_of_format_2_is_named_and_never_zeros(objects: LocalObjects, commit_2: Commit) -> None:
    objects.delete(f"{commit_2.group}/logits/c/0/0")
    with pytest.raises(MissingObject) as caught:
        read_arrays(objects, commit_2, ["logits"])
    assert caught.value.what == f"{objects.url}/{commit_2.group}/logits/c/0/0 is not there"


# --- listings


def test_only_commits_are_listed(objects: LocalObjects, commit: Commit) -> None:
    for name in ("notes.txt", "7.parquet", "00009.parquet.bak", "0000x.parquet"):
        objects.put(f"{KEY.folder}/{name}", b"")
    assert list_commits(objects, KEY.folder).keys() == {7}


def test_commits_deleted_since_they_were_listed_are_left_out(objects: LocalObjects, commit: Commit) -> None:
    gone = KEY._replace(shard=9).commit_path
    assert read_commits(objects, [KEY.commit_path, gone]) == [commit]
