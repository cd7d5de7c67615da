"""Caches that were made to harm whoever reads them: each is named, the others go on, and little memory is taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numcodecs import blosc, zstd

from storage.cache import Cache
from storage.cache.verify import verify
from storage.digests import digest
from storage.errors import CorruptObject
from storage.format.arrays import array_names
from storage.format.committing import read_members
from storage.format.rows import read_plan
from storage.format.sealed import seal, unseal
from storage.format.shards import ShardKey
from storage.format.zips import pack_zip
from tests.forging import seal_again

INGEST, TARGETS = ShardKey("digits", None, "plain", 1), ShardKey("digits", "cnn", "plain", 1)
REPOSITORY = Path(__file__).parents[3]
DEEP = b"[" * 3_000_000
# A frame of 3 GB of zeros, as zstd writes it: a header of 8 bytes of size, then blocks of one byte each.
FRAME_OF_3_GB = b"\x28\xb5\x2f\xfd\xe0" + (3 * 10**9).to_bytes(8, "little") + b"\x02\x00\x10\x00" * 23_000
BUFFER_OF_2_GB = bytes([2, 1, 33, 1]) + (2**31 - 1).to_bytes(4, "little") + (2**18).to_bytes(4, "little") + bytes(4)


def replace_members(cache: Cache, key: ShardKey, change: Callable[[dict[str, bytes]], None]) -> None:
    """Exchange members of a shard's Zarr group, with digests that are right."""
    commit = cache.commit(key)
    members = {path: bytes(data) for path, data in read_members(cache.objects, commit).items()}
    change(members)
    data, begins = pack_zip(members)
    cache.objects.put(commit.group, data)

    def say(proof: dict[str, Any], table: pa.Table) -> None:
        proof["object"] = [len(data), digest(data)]
        proof["members"] = [[path, begins[path], len(part), digest(part)] for path, part in members.items()]

    seal_again(cache, key, say)


def said(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    """Change what the metadata of the logits say."""

    def change(members: dict[str, bytes]) -> None:
        meta = json.loads(members["logits/zarr.json"])
        shape = changes.get("shape", meta["shape"])
        meta["chunk_grid"]["configuration"]["chunk_shape"] = [max(1, length) for length in shape]
        members["logits/zarr.json"] = json.dumps(meta | changes).encode()

    return change


def codecs(*names: str) -> list[dict[str, Any]]:
    return [{"name": "bytes", "configuration": {"endian": "little"}}, *({"name": name} for name in names)]


def holds(chunk: bytes, *names: str) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        said(codecs=codecs(*names))(members)
        members["logits/c/0/0"] = chunk

    return change


MEMBERS: dict[str, Callable[[dict[str, bytes]], None]] = {
    "deep JSON": lambda members: members.update({"logits/zarr.json": DEEP}),
    "JSON that is deep and short": lambda members: members.update({"logits/zarr.json": b"[" * 60_000}),
    "no JSON": lambda members: members.update({"logits/zarr.json": b""}),
    "a list": lambda members: members.update({"logits/zarr.json": b"[]"}),
    "a length below 0": said(shape=[4, -1]),
    "a length that is true": said(shape=[4, True]),
    "no whole length": said(shape=[4, 3.0]),
    "a huge shape": said(shape=[4, 2**40]),
    "a shape beyond 64 bits": said(shape=[4, 2**80]),
    "many axes": said(shape=[4, 3] + [1] * 5000),
    "a frame of 3 GB": holds(FRAME_OF_3_GB, "zstd"),
    "a frame of 3 GB that does not say so": holds(
        b"\x28\xb5\x2f\xfd\x00\x88" + b"\x02\x00\x10\x00" * 23_000, "zstd"
    ),
    "a frame in frames": holds(zstd.compress(zstd.compress(bytes(48), 1), 1), "zstd", "zstd"),
    "a buffer of 2 GB": holds(BUFFER_OF_2_GB, "blosc"),
    "a buffer that ends": holds(blosc.compress(bytes(48), b"zstd", 1)[:8], "blosc"),
    "nothing": holds(b"", "zstd"),
    "a pickle": said(codecs=[{"name": "pickle"}]),
    "a transpose to nowhere": said(
        codecs=[{"name": "transpose", "configuration": {"order": [0, 0]}}, *codecs()]
    ),
    "many nodes": lambda members: members.update({f"{'a/' * place}zarr.json": b"{}" for place in range(1, 2000)}),
}  # fmt: skip


@pytest.mark.parametrize("what", MEMBERS)
def test_a_hostile_array_is_named_and_the_others_go_on(cache: Cache, what: str) -> None:
    replace_members(cache, TARGETS, MEMBERS[what])
    assert [shard.key for shard in verify(cache).bad] == [TARGETS]
    with pytest.raises(CorruptObject):
        cache.read_targets("digits", "cnn", 1)


def no_file(path: Path, what: str) -> None:
    """Put something that is no file where a file was."""
    path.unlink()
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "holes":
        with path.open("wb") as file:
            file.truncate(2**42)
    else:
        path.symlink_to(path if what == "a circle" else what)


@pytest.mark.parametrize("what", ["/dev/zero", "/dev/tty", "a pipe", "a circle", "holes", "nowhere"])
@pytest.mark.parametrize("where", ["group", "commit"])
def test_what_is_no_file_is_named_and_the_others_go_on(cache: Cache, what: str, where: str) -> None:
    path = Path(cache.url) / (cache.commit(TARGETS).group if where == "group" else TARGETS.commit_path)
    no_file(path, what)
    if where == "commit" and what == "nowhere":
        return  # the listing does not see it: it is not there
    assert [shard.key for shard in verify(cache).bad] == [TARGETS]


@pytest.mark.parametrize("what", ["/dev/zero", "a pipe", "holes"])
@pytest.mark.parametrize("path", ["cache.json", "digits/dataset.json", "digits/plan/00000.parquet"])
def test_a_promise_that_is_no_file_is_named(cache: Cache, path: str, what: str) -> None:
    no_file(Path(cache.url) / path, what)
    with pytest.raises(CorruptObject) as caught:
        verify(Cache.open(cache.url))
    assert caught.value.what == f"{cache.url}/{path} cannot be read"


def test_a_commit_of_400_million_rows_is_named(cache: Cache) -> None:
    """They take 4 MB in the file, and would take 3 GB each column."""
    about, _ = unseal(cache.objects.get(TARGETS.commit_path))
    rows = pa.chunked_array([pa.array(np.zeros(10**7, np.int64))] * 40)
    about["rows"] = [0, len(rows)]
    cache.objects.put(TARGETS.commit_path, seal(pa.table({"row": rows}), about))
    ((key, reason),) = verify(cache).bad
    assert (key, reason.splitlines()[1]) == (TARGETS, "  found     a table of 400,000,000 rows and 3,200,000,000 bytes")


def test_a_commit_of_one_long_text_in_every_row_is_named(cache: Cache) -> None:
    """A dictionary of one text, and a run of its number: of no type of Arrow's that would keep it so."""
    about, _ = unseal(cache.objects.get(INGEST.commit_path))
    text = pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), ["x" * 10**6])
    table = pa.table({"row": np.arange(100_000), "sample_id": text})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        seal_text = f"stillroom-xxh3-128:{'0' * 32}"
        writer.add_key_value_metadata({"stillroom": json.dumps(about | {"rows": [0, 100_000], "seal": seal_text})})
    data = sink.getvalue().to_pybytes()
    place = data.rindex(b"stillroom-xxh3-128:") + len("stillroom-xxh3-128:")
    cache.objects.put(INGEST.commit_path, data[:place] + digest(data).encode() + data[place + 32 :])
    ((key, reason),) = verify(cache).bad
    expected = "  found     a table of 100,000 rows and 100,000,000,000 bytes of text"
    assert (key, reason.splitlines()[1]) == (INGEST, expected)


@pytest.mark.parametrize(
    ("extent", "cut"),
    [((1, "v", 0, 2**62), 1), ((1, "v", 0, -4), 4), ((-1, "v", 0, 4), 4), ((1, "v", 0, 10), 0), ((1, "v", 0, 10), 2.5)],
)
def test_a_plan_of_rows_without_end_is_named(cache: Cache, extent: tuple[Any, ...], cut: Any) -> None:
    path = "digits/plan/00000.parquet"
    about, _ = unseal(cache.objects.get(path))
    columns = dict(zip(("size", "version", "position", "rows"), ([value] for value in extent), strict=True))
    cache.objects.put(path, seal(pa.table({"file": ["a"], **columns}), about | {"rows_per_shard": cut}))
    with pytest.raises(CorruptObject) as caught:
        read_plan(cache.objects, "digits")
    assert caught.value.what == f"{cache.url}/{path} is not a whole plan segment"


@pytest.mark.parametrize("path", ["cache.json", "digits/dataset.json", "digits/cnn/teacher.json"])
def test_a_promise_of_deep_json_is_named(cache: Cache, path: str) -> None:
    cache.objects.put(path, DEEP)
    with pytest.raises(CorruptObject, match=f"{path} is not a whole"):
        verify(Cache.open(cache.url))


def test_names_of_arrays_are_found_in_one_pass() -> None:
    """Three million nodes, each below the one before, would be compared with one another for years."""
    paths = [f"n{number:07d}/zarr.json" for number in range(300_000)]
    assert len(array_names(paths)) == 300_000


def test_a_frame_says_what_is_in_it_in_every_width() -> None:
    from storage.format.arrays import _zstd_content_bytes

    sizes = [0, 1, 255, 256, 257, 65_791, 65_792, 10**6]
    assert [_zstd_content_bytes(zstd.compress(bytes(size), 1)) for size in sizes] == sizes


def test_a_hostile_cache_takes_little_memory(cache: Cache) -> None:
    """All that could be: 3 GB in a frame, 400 million rows, files of nothing but holes, devices without end."""
    keys = [ShardKey("digits", teacher, "plain", shard) for teacher in (None, "cnn") for shard in range(3)]
    replace_members(cache, keys[3], MEMBERS["a frame of 3 GB"])
    replace_members(cache, keys[4], MEMBERS["a huge shape"])
    no_file(Path(cache.url) / cache.commit(keys[0]).group, "/dev/zero")
    no_file(Path(cache.url) / cache.commit(keys[1]).group, "holes")
    no_file(Path(cache.url) / keys[2].commit_path, "holes")
    about, _ = unseal(cache.objects.get(keys[5].commit_path))
    rows = pa.chunked_array([pa.array(np.zeros(10**7, np.int64))] * 40)
    cache.objects.put(keys[5].commit_path, seal(pa.table({"row": rows}), about | {"rows": [0, len(rows)]}))
    command = [sys.executable, "-m", __name__, cache.url]  # from the repository, where Python finds the tests
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=300)
    bad, grown_bytes = json.loads(done.stdout)
    assert (bad, grown_bytes < 100 * 2**20) == ([str(key) for key in keys], True)


if __name__ == "__main__":
    import resource

    opened = Cache.open(sys.argv[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    named = [str(shard.key) for shard in verify(opened).bad]
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    sys.stdout.write(json.dumps([named, grown]))
