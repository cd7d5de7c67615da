"""What a teacher is, promised by the first worker that it has answered and compared by all others.

Not before: a mistake in a job, such as a layer that is not there, must leave no promise that the mended job breaks.
"""

from __future__ import annotations

import socket

from storage.cache import Cache
from storage.errors import MissingObject, StaleCache
from storage.format.shards import ShardKey, list_commits
from storage.format.specs import WEIGHTS_JSON, TeacherSpec, WeightsSpec, check_promise


def promise_teacher(cache: Cache, key: ShardKey, spec: TeacherSpec, job: str) -> None:
    """Promise what a shard was asked with, before anything of it is written, or compare it with what is promised.

    Raises:
        StaleCache: another builder has promised another teacher under this name; every field that differs is named.
    """
    path = f"{key.dataset}/{key.teacher}/teacher.json"
    try:
        promised = cache.promises.teacher(key.dataset, str(key.teacher))
    except MissingObject:
        if cache.objects.create(path, spec.to_json()):
            return
        promised = cache.promises.teacher(key.dataset, str(key.teacher))
    check_promise(cache.url, path, promised, spec, job)


def promise_weights(cache: Cache, key: ShardKey, weights: str) -> None:
    """Promise the weights that a shard is asked with, or compare them with those that are promised already.

    Raises:
        StaleCache: shards of this teacher were made with others.
        MissingObject: the promise is lost.
    """
    path = f"{key.dataset}/{key.teacher}/{WEIGHTS_JSON}"
    try:
        promised = cache.promises.weights(key.dataset, str(key.teacher))
    except MissingObject:
        # It is written before any commit that speaks of it: where there is such a one, it is lost, or there by now.
        if not _speaks_of_weights(cache, key) and cache.objects.create(path, WeightsSpec(weights=weights).to_json()):
            return
        promised = cache.promises.weights(key.dataset, str(key.teacher))
    if promised != weights:
        raise StaleCache(
            f"teacher {key.teacher} has other weights here than those that its shards of {key.dataset} were made with",
            found=f"weights {weights}, as loaded on {socket.gethostname()}",
            expected=f"weights {promised}  ({cache.url}/{path})",
            do="let every worker load the same file: name it as `weights` in [[teacher]]; or cache build JOB.toml "
            "--as NAME, if the teacher is meant to be another",
        )


def _speaks_of_weights(cache: Cache, key: ShardKey) -> bool:
    """Return whether a shard of this teacher says its weights; those of before they were promised do not."""
    for folder in cache.objects.list(f"{key.dataset}/{key.teacher}").folders:
        for shard in sorted(list_commits(cache.objects, folder))[:1]:
            commit = cache.commit(ShardKey(key.dataset, key.teacher, folder.rsplit("/", 1)[-1], shard))
            if "weights" in commit.about:
                return True
    return False
