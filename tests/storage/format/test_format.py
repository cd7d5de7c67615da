"""A reader written from FORMAT.md alone, without a line of ours, reads what we write."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import xxhash
import zarr
from zarr.storage import ZipStore

from storage.cache import Cache
from storage.format.shards import ShardKey


def unsealed(data: bytes) -> tuple[dict[str, Any], pl.DataFrame]:
    (*_, match) = re.finditer(rb"stillroom-xxh3-128:([0-9a-f]{32})", data)
    zeroed = data[: match.start(1)] + b"0" * 32 + data[match.end(1) :]
    assert xxhash.xxh3_128_hexdigest(zeroed).encode() == match[1]
    return json.loads(pq.read_metadata(BytesIO(data)).metadata[b"stillroom"]), pl.read_parquet(BytesIO(data))


def checked_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_bytes())
    expected = value.pop("digest")
    assert xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()) == expected
    return value


def arrays_of(commit_path: Path) -> dict[str, np.ndarray]:
    proof, _ = unsealed(commit_path.read_bytes())
    path = commit_path.parent / f"{commit_path.stem}-{proof['attempt']}.zarr.zip"
    whole = path.read_bytes()
    assert [len(whole), xxhash.xxh3_128_hexdigest(whole)] == proof["object"]
    for _, begin, size, digest in proof["members"]:
        assert xxhash.xxh3_128_hexdigest(whole[begin : begin + size]) == digest
    names = [name for name, *_ in proof["members"]]
    arrays = [name.removesuffix("/zarr.json") for name in names if name.count("/") and "/c/" not in name]
    group = zarr.open_group(ZipStore(path, mode="r"), mode="r")
    return {name: group[name][...] for name in arrays if name != "feature"}  # type: ignore[index, misc]


DENSE = {
    "kind": "dense",
    "dtype": "fp32",
    "temperatures": [1.0],
    "standardised_temperatures": [],
    "statistics": False,
}


def test_the_promises_can_be_read(cache: Cache) -> None:
    folder = Path(cache.url)
    assert [
        checked_json(folder / "cache.json")["format"],
        checked_json(folder / "digits/dataset.json")["classes"],
        checked_json(folder / "digits/cnn/teacher.json")["encoding"],
    ] == [3, ["zero", "one", "two"], DENSE]


def test_the_plan_can_be_read(cache: Cache) -> None:
    about, extents = unsealed((Path(cache.url) / "digits/plan/00000.parquet").read_bytes())
    assert (about["rows_per_shard"], extents.select("file", "position", "rows").rows()) == (4, [("a", 0, 10)])


def test_every_shard_can_be_read(cache: Cache) -> None:
    for teacher, names in ((None, ["inputs"]), ("cnn", ["feature/last", "logits"])):
        for shard in range(3):
            key = ShardKey("digits", teacher, "plain", shard)
            arrays = arrays_of(Path(cache.url) / key.commit_path)
            ours = (
                cache.read_inputs("digits", shard)
                if teacher is None
                else cache.read_targets("digits", "cnn", shard)["logits"]
            )
            assert (sorted(arrays), arrays[names[-1]].tolist()) == (names, ours.tolist())


def test_every_commit_says_which_cache_and_which_promises_it_is_of(cache: Cache) -> None:
    folder, digests = Path(cache.url), {}
    for name in ("digits/dataset.json", "digits/cnn/teacher.json"):
        digests[name] = json.loads((folder / name).read_bytes())["digest"]
    for path in folder.glob("digits/*/**/0*.parquet"):
        if path.parent.name != "plan":
            proof, _ = unsealed(path.read_bytes())
            promise = None if path.parent.name == "ingest" else digests["digits/cnn/teacher.json"]
            said = (proof["cache"], proof["dataset"], proof["promise"])
            assert said == (checked_json(folder / "cache.json")["id"], digests["digits/dataset.json"], promise)


def test_the_inputs_digest_is_over_the_bytes_of_the_inputs(cache: Cache) -> None:
    proof, _ = unsealed((Path(cache.url) / "digits/ingest/00001.parquet").read_bytes())
    assert proof["about"]["inputs_digest"] == xxhash.xxh3_128_hexdigest(cache.read_inputs("digits", 1).tobytes())


def test_the_first_object_of_a_cache_is_its_promise(tmp_path: Path) -> None:
    Cache.create(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


def test_the_contract_is_a_few_pages_and_of_this_format() -> None:
    text = (Path(__file__).parents[3] / "storage" / "FORMAT.md").read_text(encoding="utf-8")
    assert (text.splitlines()[0], len(text.split()) < 3300) == ("# The cache on disk, format 3", True)
