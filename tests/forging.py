"""Shards as somebody else may have written or sealed them: every digest right, and something else wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from storage.cache import Cache
from storage.format.committing import read_members, unpack_checked, write_shard
from storage.format.sealed import seal, unseal
from storage.format.shards import ShardKey
from storage.inputs.ragged import Ragged

Arrays = dict[str, np.ndarray | Ragged]


def seal_again(cache: Cache, key: ShardKey, change: Callable[[dict[str, Any], pa.Table], pa.Table | None]) -> None:
    """Change a commit's JSON in place, and its table if one is returned, and seal it again."""
    about, table = unseal(cache.objects.get(key.commit_path))
    changed = change(about, table)
    cache.objects.put(key.commit_path, seal(table if changed is None else changed, about))


def write_again(cache: Cache, key: ShardKey, change: Callable[[Arrays], None], about: dict[str, Any]) -> None:
    """Change a shard's arrays in place, and commit it as what it was, with changes to what its commit says."""
    commit = replace(cache.commit(key, with_table=True), promised=None)
    arrays = unpack_checked(commit, read_members(cache.objects, commit), commit.array_names)
    change(arrays)
    cache.objects.delete(key.commit_path)
    write_shard(
        cache.objects,
        key,
        rows=(commit.start, commit.stop),
        arrays=arrays,
        table=commit.table,
        about=commit.about | about,
        belonging=commit.belonging,
    )
