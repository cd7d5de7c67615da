"""A shard is whole or not there: commits, attempts, damage, kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from storage.errors import CorruptObject, MissingObject, NotInCache, StorageFailure
from storage.format.arrays import DTYPES
from storage.format.objects import LocalObjects, Objects, open_objects
from storage.format.sealed import seal
from storage.format.shards import Commit, ShardKey, StoredObject, list_commits, read_arrays, read_commits, write_shard

KEY = ShardKey("digits", "cnn", "plain", 7)
ROWS = (14, 17)
ARRAYS = {"logits": np.arange(6, dtype=np.float32).reshape(3, 2), "feature/x": np.ones((3, 4), np.float16)}
TABLE = pa.table(
    {"row": pa.array(range(*ROWS), pa.int64()), "sample_id": ["a", None, "c"], "entropy": [0.5, None, 0.25]}
)
ABOUT = {"seconds": 1.5, "host": "h"}


def write(objects: Objects, key: ShardKey = KEY, **changes: Any) -> Commit | None:
    return write_shard(objects, key, **{"rows": ROWS, "arrays": ARRAYS, "table": TABLE, "about": ABOUT} | changes)


def stored_commit(objects: Objects, key: ShardKey = KEY, *, with_table: bool = True) -> Commit:
    return Commit.from_parquet(objects.get(key.commit_path), key.commit_path, with_table=with_table)


@pytest.fixture
def commit(objects: LocalObjects) -> Commit:
    commit = write(objects)
    assert commit is not None
    return commit


# --- write, then read


def test_a_commit_reads_back(objects: LocalObjects, commit: Commit) -> None:
    assert stored_commit(objects) == commit


def test_a_proof_can_be_read_without_its_table(objects: LocalObjects, commit: Commit) -> None:
    back = stored_commit(objects, with_table=False)
    assert (len(back.table), back.objects, back.about) == (0, commit.objects, ABOUT)


def test_a_commit_lies_where_its_key_says(objects: LocalObjects, commit: Commit) -> None:
    assert (commit.key.commit_path, commit.group) == (
        "digits/cnn/plain/00007.parquet",
        f"digits/cnn/plain/00007-{commit.attempt}.zarr",
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
    assert objects.list(KEY.folder).folders == [commit.group]


def test_the_same_work_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write(LocalObjects(tmp_path / name)) for name in "ab")
    assert first is not None
    assert second is not None
    assert first.objects == second.objects


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
    assert (won.count(True), found.tolist(), len(objects.list(KEY.folder).folders)) == (
        1,
        np.full((3, 2), won.index(True)).tolist(),
        1,
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


def test_a_disk_that_fills_up_is_left_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(StorageFailure):
        write(Failing(tmp_path, put=3))
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
            order.append(path.rsplit(".", 1)[-1])
            assert list_commits(self, KEY.folder) == {}
            super().put(path, data)

        def create(self, path: str, data: bytes) -> bool:
            order.append("commit")
            return super().create(path, data)

    write(Watched(tmp_path))
    assert (order.count("commit"), order[-1]) == (1, "commit")


KILLED = """
import sys
import numpy as np, pyarrow as pa
from storage.format.objects import LocalObjects
from storage.format.shards import ShardKey, write_shard
objects = LocalObjects(sys.argv[1])
table = pa.table({"row": pa.array(range(64), pa.int64())})
arrays = {name: np.random.default_rng(0).random((64, 2048)) for name in ("logits", "feature/a", "feature/b")}
print("ready", flush=True)
sys.stdin.readline()
for shard in range(int(sys.argv[2])):
    key = ShardKey("d", "t", "plain", shard)
    write_shard(objects, key, rows=(0, 64), arrays=arrays, table=table, about={})
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
            moment = chance.randrange(100)  # by objects written, of 108 in all: the same on a slow disk and a fast one
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


HOSTILE = [
    {"attempt": "../../../x"},
    {"attempt": "/etc"},
    {"attempt": 7},
    {"objects": [["../../secret", 1, "d"]]},
    {"objects": [["/etc/passwd", 1, "d"]]},
    {"objects": [["logits/../../x", 1, "d"]]},
    {"objects": [["logits//c", 1, "d"]]},
    {"objects": [["", 1, "d"]]},
    {"objects": [["logits/c"]]},
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
        "objects": [StoredObject("logits/zarr.json", 1, "d")],
        "about": {},
    }
    with pytest.raises(CorruptObject):
        Commit.from_parquet(seal(TABLE, proof | change), KEY.commit_path)


@given(st.binary(max_size=100))
def test_bytes_that_are_no_commit_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptObject):
        Commit.from_parquet(data, KEY.commit_path)


# --- damage to an object


def object_paths(commit: Commit) -> list[str]:
    return [f"{commit.group}/{stored.path}" for stored in commit.objects if "/" in stored.path]


def test_every_flipped_byte_of_every_object_is_noticed(objects: LocalObjects, commit: Commit) -> None:
    for path in object_paths(commit):
        if "feature/zarr.json" in path:
            continue  # no array; `cache verify` reads it
        data = objects.get(path)
        for i in range(0, len(data), 7):
            (objects.root / path).write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
            with pytest.raises(CorruptObject) as caught:
                read_arrays(objects, commit, ["logits", "feature/x"])
            assert caught.value.what == f"{objects.url}/{path} is not what was committed"
        (objects.root / path).write_bytes(data)


@pytest.mark.parametrize("length", [0, 1, 10])
def test_a_truncated_object_is_named(objects: LocalObjects, commit: Commit, length: int) -> None:
    path = f"{commit.group}/logits/c/0/0"
    objects.put(path, objects.get(path)[:length])
    with pytest.raises(CorruptObject) as caught:
        read_arrays(objects, commit, ["logits"])
    assert caught.value.what == f"{objects.url}/{path} is not what was committed"


def test_a_missing_object_is_named_and_never_zeros(objects: LocalObjects, commit: Commit) -> None:
    objects.delete(f"{commit.group}/logits/c/0/0")
    with pytest.raises(MissingObject) as caught:
        read_arrays(objects, commit, ["logits"])
    assert caught.value.what == f"{objects.url}/{commit.group}/logits/c/0/0 is not there"


def test_an_object_swapped_with_that_of_another_shard_is_named(objects: LocalObjects, commit: Commit) -> None:
    other = write(objects, KEY._replace(shard=8), arrays={"logits": np.arange(6, 12, dtype=np.float32).reshape(3, 2)})
    assert other is not None
    path = f"{commit.group}/logits/c/0/0"
    objects.put(path, objects.get(f"{other.group}/logits/c/0/0"))
    with pytest.raises(CorruptObject) as caught:
        read_arrays(objects, commit, ["logits"])
    assert caught.value.what == f"{objects.url}/{path} is not what was committed"


def test_damage_to_one_array_does_not_hide_another(objects: LocalObjects, commit: Commit) -> None:
    objects.delete(f"{commit.group}/feature/x/c/0/0")
    assert read_arrays(objects, commit, ["logits"])["logits"].tolist() == ARRAYS["logits"].tolist()


# --- listings


def test_only_commits_are_listed(objects: LocalObjects, commit: Commit) -> None:
    for name in ("notes.txt", "7.parquet", "00009.parquet.bak", "0000x.parquet"):
        objects.put(f"{KEY.folder}/{name}", b"")
    assert list_commits(objects, KEY.folder).keys() == {7}


def test_commits_deleted_since_they_were_listed_are_left_out(objects: LocalObjects, commit: Commit) -> None:
    gone = KEY._replace(shard=9).commit_path
    assert read_commits(objects, [KEY.commit_path, gone]) == [commit]
