"""Which cluster a build has: its job's, as the flags of the command want it."""

from __future__ import annotations

from jobs.files.cluster_options import BuildClusterOptions
from jobs.kubernetes.manifest import in_pod
from storage.errors import BadRequest


def choose_cluster(
    options: BuildClusterOptions, workers: int | None, part: tuple[int, int] = (0, 1)
) -> BuildClusterOptions:
    """Return the job's cluster as the flags want it; a part of a job array is one process. Raises BadRequest."""
    if workers is not None and not (options.kind == "local" or options.submits):
        raise BadRequest(f"--workers is for a local cluster, and this job's is {options.kind}")
    if part != (0, 1):  # the job array's own scheduler has given it a node already
        # a thread that takes too long can only be ended with its process, which then is one beside this one
        limited = options.shard_limit_s is not None
        own = {"kind": "local", "workers": 1} if limited else {"kind": "inline", "workers": None}
        return options.model_copy(update={**own, "address": None})
    return in_pod(options if workers is None else options.model_copy(update={"workers": workers}))
