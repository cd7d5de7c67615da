"""The weights of a teacher as loaded, promised by the first worker that loads it and compared by all others."""

from __future__ import annotations

import socket

from storage.cache import Cache
from storage.errors import StaleCache
from storage.format.shards import ShardKey
from storage.format.specs import WEIGHTS_JSON, WeightsSpec, read_spec


def promise_weights(cache: Cache, key: ShardKey, weights: str) -> None:
    """Promise the weights that a shard is asked with, or compare them with those that are promised already.

    Raises:
        StaleCache: shards of this teacher were made with others.
    """
    path = f"{key.dataset}/{key.teacher}/{WEIGHTS_JSON}"
    if (cache.id, path, weights) in _promised:
        return
    if cache.objects.create(path, WeightsSpec(weights=weights).to_json()):
        _promised.add((cache.id, path, weights))
        return
    promised = read_spec(cache.objects, path, WeightsSpec).weights
    if promised != weights:
        raise StaleCache(
            f"teacher {key.teacher} has other weights here than those that its shards of {key.dataset} were made with",
            found=f"weights {weights}, as loaded on {socket.gethostname()}",
            expected=f"weights {promised}  ({cache.url}/{path})",
            do="let every worker load the same file: name it as `weights` in [[teacher]]; or cache build JOB.toml "
            "--as NAME, if the teacher is meant to be another",
        )
    _promised.add((cache.id, path, weights))


_promised: set[tuple[str, str, str]] = set()  # by cache, what this process has seen: promises never change
