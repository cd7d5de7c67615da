"""`cache recode`: a smaller cache from a richer one, without the teacher. Parses, calls the room, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.arguments import (
    AllowVersionsOption,
    CacheArgument,
    DeviceOption,
    JobArgument,
    JsonOption,
    LogFormatOption,
    MetricsOption,
    WaitOption,
)


def recode(
    cache: CacheArgument,
    job: JobArgument,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes, instead of the job's.")] = None,
    beside: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Make a cache of this name beside the job's.")
    ] = None,
    wait: WaitOption = False,
    allow_versions: AllowVersionsOption = False,
    device: DeviceOption = "auto",
    log_format: LogFormatOption = "text",
    metrics_file: MetricsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the job's cache from CACHE, a richer one, without its teachers."""
    from jobs.show import terminal
    from jobs.show.night import Night

    subject = job if beside is None else f"{job} as {beside}"
    night = Night("cache recode", subject, log_format, metrics_file)

    def action() -> int:
        from jobs.cli.building import choose_cluster, find_pools, heard, open_runner, print_report, tell_report
        from jobs.cluster.attendance import Attendance
        from jobs.files.cache_job import CacheJob
        from jobs.files.reading import read_job
        from storage.cache import Cache
        from storage.cache.lease import hold
        from storage.errors import RowsMissing
        from teacher_cache.building.runners import run_inline
        from teacher_cache.recoding.recode import needs_runner, prepare_recoding, run_recode

        read = read_job(job, CacheJob)
        cluster = choose_cluster(read.cluster, workers)
        pools = find_pools(cluster, device)
        request = read.request(job, device=device, threads=pools.teacher.threads, beside=beside)
        source = Cache.open(absolute(cache))
        recoding = prepare_recoding(source, request)
        with terminal.watching("rows", night) as watch:
            if source.unproven is not None:
                watch.note(source.unproven)
            if needs_runner(recoding):  # a cluster takes seconds to start
                objects, do = (
                    Cache.create(request.cache).objects,
                    f"cache recode {cache} {job} --wait    # waits for it",
                )
                with (
                    hold(objects, request.part, wait=wait, note=watch.note, do=do) as lease,
                    open_runner(cluster, pools, Attendance(watch.note, allow_versions=allow_versions)) as runner,
                ):
                    report = run_recode(recoding, heard(lease.kept(runner), night), watch)
            else:
                report = run_recode(recoding, run_inline, watch)
            for stage, shards in recoding.missing.items():
                watch.note(f"{stage}: {shards} shards are not in {cache} yet; the same command takes them up later")
        tell_report(request.cache, report, night)
        print_report(request.cache, report, as_json)
        return report.exit_code or (RowsMissing.exit_code if recoding.missing else 0)

    terminal.run(action, as_json=as_json, night=night)


def absolute(cache: str) -> str:
    """Return a cache's address as a worker elsewhere must be told it."""
    import os

    return cache if "://" in cache else os.path.abspath(cache)
