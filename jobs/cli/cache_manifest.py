"""`cache manifest`: the build of a job for Kubernetes. Parses, calls the room, prints."""

from __future__ import annotations

from jobs.cli.arguments import JobArgument, JsonOption


def manifest(job: JobArgument, as_json: JsonOption = False) -> None:
    """Write the build of a job for Kubernetes as YAML, which Dask's operator runs."""
    from jobs.show import terminal

    def action() -> int:
        from jobs.cli.manifest import show_manifest
        from jobs.cluster.pools import AT_ONCE, AT_ONCE_GPU
        from jobs.files.cache_job import CacheJob

        def written(read: CacheJob) -> dict[str, str]:
            return {"cache": read.cache}

        return show_manifest(job, CacheJob, ("cache", "build"), (AT_ONCE, AT_ONCE_GPU[0]), written, as_json=as_json)

    terminal.run(action, as_json=as_json, answers=True)
