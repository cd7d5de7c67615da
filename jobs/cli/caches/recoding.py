"""`cache recode`: a smaller cache from a richer one, without the teacher. Parses, calls the room, prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
    absolute,
)

if TYPE_CHECKING:
    from jobs.cluster.attendance import Attendance
    from jobs.cluster.pools import Pools
    from jobs.files.cluster_options import BuildClusterOptions
    from jobs.show.night import Night
    from jobs.show.terminal import Watch
    from teacher_cache.building.stages import BuildReport
    from teacher_cache.recoding.recode import PreparedRecoding


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
        from jobs.cli.caches.choosing import choose_cluster
        from jobs.cli.caches.reports import print_report, tell_report
        from jobs.cluster.attendance import Attendance
        from jobs.cluster.builds import find_pools
        from jobs.files.cache_job import CacheJob
        from jobs.files.reading import read_job
        from storage.cache import Cache
        from storage.errors import RowsMissing
        from teacher_cache.recoding.recode import prepare_recoding

        read = read_job(job, CacheJob)
        cluster = choose_cluster(read.cluster, workers)
        pools = find_pools(cluster, device)
        request = read.request(job, device=device, threads=pools.teacher.threads, beside=beside)
        source = Cache.open(absolute(cache))
        recoding = prepare_recoding(source, request)
        with terminal.watching("rows", night) as watch:
            if source.unproven is not None:
                watch.note(source.unproven)
            attendance = Attendance(watch.note, allow_versions=allow_versions)
            do = f"cache recode {cache} {job} --wait    # waits for it"
            report = _recode(recoding, cluster, pools, watch, night, attendance, wait=wait, do=do)
            for stage, shards in recoding.missing.items():
                watch.note(f"{stage}: {shards} shards are not in {cache} yet; the same command takes them up later")
        tell_report(request.cache, report, night)
        print_report(request.cache, report, as_json)
        return report.exit_code or (RowsMissing.exit_code if recoding.missing else 0)

    terminal.run(action, as_json=as_json, night=night)


def _recode(
    recoding: PreparedRecoding,
    cluster: BuildClusterOptions,
    pools: Pools,
    watch: Watch,
    night: Night,
    attendance: Attendance,
    *,
    wait: bool,
    do: str,
) -> BuildReport:
    """Make what is missing, while nobody else is at it; return what came of it.

    Args:
        recoding: what is to be made of which cache.
        cluster, pools, attendance: the workers.
        watch, night: who is told.
        wait: whether to wait for another command that is at it.
        do: what the message says if it is not waited for.
    """
    from jobs.cluster.builds import heard, open_runner
    from storage.cache import Cache
    from storage.cache.lease import hold
    from teacher_cache.building.runners import run_inline
    from teacher_cache.recoding.recode import needs_runner, run_recode

    if not needs_runner(recoding):  # a cluster takes seconds to start
        return run_recode(recoding, run_inline, watch)
    request = recoding.request
    with (
        hold(Cache.create(request.cache).objects, request.part, wait=wait, note=watch.note, do=do) as lease,
        open_runner(cluster, pools, attendance) as runner,
    ):
        return run_recode(recoding, heard(lease.kept(runner), night), watch)
