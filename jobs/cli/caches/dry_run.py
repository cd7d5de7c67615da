"""What `cache build --dry-run` says: what is missing, the memory of its workers, the script of their jobs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jobs.cluster.builds import lay_out_build
from jobs.show import terminal
from jobs.show.tables import print_memory, print_script, print_table
from teacher_cache.building.memory import hold_libraries, project_with_gpus, project_worker
from teacher_cache.building.survey import prepare_build

if TYPE_CHECKING:
    from jobs.cluster.pools import Pools
    from jobs.files.cluster_options import BuildClusterOptions
    from student_train.feed.devices import Device
    from teacher_cache.building.prepared import BuildRequest, PreparedBuild


def foretell(request: BuildRequest, cluster: BuildClusterOptions, device: Device, *, as_json: bool) -> int:
    """Say what a build would do, with a bound on memory; return the exit code."""
    libraries = hold_libraries(request.teachers)  # before rows are read, which this process would hold and no worker
    prepared, pools = lay_out_build(prepare_build(request), cluster, device, always=True)
    if prepared.catalogue is not None:
        prepared.catalogue.ledger()  # refuses what the build would refuse: a shard of another cache
    _print(prepared, pools, libraries, cluster, as_json=as_json)
    return 0


def _job_script(cluster: BuildClusterOptions, pools: Pools | None) -> str | None:
    """Return the script of the jobs that a build would submit. Raises BadRequest: what renders it is not installed."""
    from jobs.cluster.batch.submitting import job_script

    if not cluster.submits or pools is None:
        return None
    return job_script(cluster, pools.teacher.environments[0], pools.teacher.at_once)


def _print(
    prepared: PreparedBuild, pools: Pools | None, libraries: int, cluster: BuildClusterOptions, *, as_json: bool
) -> None:
    """Print what a build would do, the memory of its workers, and the script of their jobs."""
    import polars as pl

    stages = [
        {
            "stage": stage.name,
            "rows": stage.dataset.guess_rows(stage.dataset.rows.num_rows),
            "shards": len(stage.shards),
            "shards_missing": len(stage.todo),
            "rows_missing": stage.dataset.guess_rows(sum(shard.stop - shard.start for shard in stage.todo)),
        }
        for stage in prepared.stages
    ]
    if pools is not None and pools.teacher.has_gpus:
        ingest, teacher, gpu = project_with_gpus(prepared, pools.teacher.at_once)
        counts = [len(pool.devices) for pool in pools]
        memory = {
            f"each of {counts[0]} workers of the ingest": ingest,
            f"each of {counts[1]} workers with a GPU": teacher,
            "its GPU": gpu,
        }
        said = {
            "worker_memory_bytes": max(ingest.total_bytes, teacher.total_bytes),
            "gpu_memory_bytes": gpu.total_bytes,
        }
    else:
        worker = project_worker(prepared, libraries)
        memory, said = {"a worker": worker}, {"worker_memory_bytes": worker.total_bytes}
    script = _job_script(cluster, pools)
    notes = [*prepared.notes, *_tight(cluster.memory, said["worker_memory_bytes"])]
    if as_json:
        jobs = {} if script is None else {"job_script": script}
        terminal.print_json({"cache": prepared.request.cache, "stages": stages, **said, **jobs, "notes": notes})
        return
    print_table(pl.DataFrame(stages), title=prepared.request.cache)
    for name, parts in memory.items():
        print_memory(f"memory of {name}", parts.total_bytes, parts._asdict())
    for note in notes:
        terminal.out.print(note, markup=False)
    if script is not None:
        print_script(script)
    terminal.out.print("a dry run: nothing was written")


def _tight(memory: str | None, bound_bytes: int) -> list[str]:
    """Return a note if a job or a pod has less memory than its worker may need.

    >>> _tight("1 GiB", 1_500_000_000)
    ['note: memory = "1 GiB" in [cluster] is less than a worker may need, 1.4 GiB; one that needs more is ended']
    >>> _tight("2 GiB", 1_500_000_000), _tight(None, 1_500_000_000)
    ([], [])
    """
    from dask.utils import parse_bytes

    if memory is None or parse_bytes(memory) >= bound_bytes:
        return []
    need = f"{math.ceil(bound_bytes / 2**30 * 10) / 10:g} GiB"
    return [
        f'note: memory = "{memory}" in [cluster] is less than a worker may need, {need}; one that needs more is ended'
    ]
