"""A cache of very many tiny shards, made in minutes: real promises and plan, and commits that are copies of a real one.

One shard of the ingest and one of the teacher are built; every other commit says the same of rows of its own, sealed
anew. Its Zarr group is one more name of the real one's file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from storage.format.sealed import METADATA_KEY, UNSEALED, unseal

if TYPE_CHECKING:
    from storage.format.shards import Commit

ROWS_PER_SHARD = 2
MOST_NAMES = 50_000  # of one file; ext4 has 65,000
TEACHER = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
"""
JOB = """
cache = "cache"
[[dataset]]
name = "d"
kind = "arrays"
path = "inputs.npy"
labels = "labels.npy"
rows_per_shard = {rows}
[[teacher]]
name = "t"
factory = "linear.py:build"
weights = "linear.safetensors"
[cluster]
kind = "inline"
"""


def make_cache(folder: Path, shards: int) -> Path:
    """Return the job of a whole cache, `folder`/cache; half of the shards are its ingest's and half its teacher's."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    folder.mkdir(parents=True, exist_ok=True)
    num_rows = shards // 2 * ROWS_PER_SHARD
    np.save(folder / "inputs.npy", np.random.default_rng(0).integers(0, 256, (num_rows, 2), np.uint8))
    np.save(folder / "labels.npy", np.arange(num_rows) % 2)
    (folder / "linear.py").write_text(TEACHER)
    torch.manual_seed(0)
    save_file(nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).state_dict(), folder / "linear.safetensors")
    job = folder / "many.cache.toml"
    job.write_text(JOB.format(rows=ROWS_PER_SHARD))
    first = [str(Path(sys.executable).with_name("cache")), "build", str(job), "--partition", f"0/{shards // 2}"]
    subprocess.run(first, check=True, capture_output=True)
    numbers = np.array_split(np.arange(1, shards // 2), 2 * (os.cpu_count() or 1))
    work = [(teacher, part) for teacher in (None, "t") for part in numbers]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(_copy, str(folder / "cache")), *zip(*work, strict=True)))
    return job


def _copy(url: str, teacher: str | None, numbers: np.ndarray) -> None:
    """Write the commits of some shards of a stage, and a name for the group of each."""
    from storage.cache import Cache
    from storage.format.shards import ShardKey

    cache = Cache.open(url)
    first = cache.commit(ShardKey("d", teacher, "plain", 0), with_table=True)
    group, stamp, names = (Path(url) / first.group).read_bytes(), _Stamp(first), ""
    for count, number in enumerate(numbers.tolist()):
        key = first.key._replace(shard=number)
        commit = replace(first, key=key, attempt=f"{number:08x}")
        if count % MOST_NAMES == 0:
            names = f"{url}/{commit.group}"
            Path(names).write_bytes(group)
        else:
            os.link(names, f"{url}/{commit.group}")
        with open(f"{url}/{key.commit_path}", "wb", buffering=0) as file:
            file.write(stamp.sealed(number))


class _Stamp:
    """A commit with places left open: what differs from shard to shard is written into its bytes, and they are sealed.

    Args:
        first: with its table; it is written plain and not compressed, so that every value lies open.
    """

    SHARD, START, STOP = 900_000_001, 900_000_002, 900_000_003  # of nine digits; JSON takes blanks before a number

    def __init__(self, first: Commit):
        import pyarrow as pa
        import pyarrow.parquet as pq

        open_rows = [2**62 + i for i in range(ROWS_PER_SHARD)]
        table = first.table.set_column(0, "row", pa.array(open_rows))
        ids = [f"inputs.npy:#{i:07d}" for i in range(ROWS_PER_SHARD)]
        if "sample_id" in table.column_names:
            table = table.set_column(table.column_names.index("sample_id"), "sample_id", pa.array(ids))
        key = first.key._replace(shard=self.SHARD)
        proof = unseal(replace(first, key=key, start=self.START, stop=self.STOP, attempt="ffffffff").to_parquet()).about
        sink, text = pa.BufferOutputStream(), json.dumps(proof | {"seal": f"stillroom-xxh3-128:{UNSEALED.decode()}"})
        table = table.replace_schema_metadata(None)
        with pq.ParquetWriter(
            sink, table.schema, compression="none", use_dictionary=False, write_statistics=False, store_schema=False
        ) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({METADATA_KEY: text})
        self._bytes = bytearray(sink.getvalue().to_pybytes())
        self._rows = [self._places(number.to_bytes(8, "little")) for number in open_rows]
        self._ids = [self._places(name.encode()) for name in ids]
        self._texts = {text: self._places(text.encode()) for text in map(str, (self.SHARD, self.START, self.STOP))}
        self._attempt = self._places(b"ffffffff")
        self._seal = self._places(b"stillroom-xxh3-128:" + UNSEALED)[-1] + len("stillroom-xxh3-128:")

    def _places(self, what: bytes) -> list[int]:
        return [match.start() for match in re.finditer(re.escape(what), self._bytes)]

    def sealed(self, shard: int) -> bytes:
        """Return the commit of a shard."""
        data, start = self._bytes[:], shard * ROWS_PER_SHARD
        numbers = (shard, start, start + ROWS_PER_SHARD)
        values = [
            (places, f"{number:9d}".encode()) for places, number in zip(self._texts.values(), numbers, strict=True)
        ]
        values += [(places, (start + i).to_bytes(8, "little")) for i, places in enumerate(self._rows)]
        values += [(places, f"inputs.npy:{start + i:08d}".encode()) for i, places in enumerate(self._ids)]
        for places, value in [*values, (self._attempt, f"{shard:08x}".encode())]:
            for place in places:
                data[place : place + len(value)] = value
        data[self._seal : self._seal + len(UNSEALED)] = xxhash.xxh3_128(data).hexdigest().encode()
        return bytes(data)
