"""`cache build`: what is missing of a job's cache is computed, or told. Parses, calls the room, prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.arguments import (
    AllowVersionsOption,
    DeviceOption,
    JobArgument,
    JsonOption,
    LogFormatOption,
    MetricsOption,
    WaitOption,
)

if TYPE_CHECKING:
    from jobs.files.cluster_options import BuildClusterOptions
    from jobs.show.night import Night
    from student_train.feed.devices import Device
    from teacher_cache.building.prepared import BuildRequest


def build(
    job: JobArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what is missing and the memory bound; do nothing.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes, instead of the job's.")] = None,
    partition: Annotated[
        str, typer.Option(metavar="I/N", help="Do every N-th shard, from I = 0; for job arrays.")
    ] = "0/1",
    beside: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Build a cache of this name beside the job's.")
    ] = None,
    wait: WaitOption = False,
    allow_versions: AllowVersionsOption = False,
    device: DeviceOption = "auto",
    log_format: LogFormatOption = "text",
    metrics_file: MetricsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run what is missing of the job's cache, and commit it."""
    from jobs.show import terminal
    from jobs.show.night import Night

    subject = f"{job}{'' if beside is None else f' as {beside}'}"  # each cache and part has figures of its own
    subject += "" if partition == "0/1" else f" part {partition}"
    night = Night("cache build", subject, log_format, None if dry_run else metrics_file)

    def action() -> int:
        from jobs.cli.caches.choosing import choose_cluster
        from jobs.files.cache_job import CacheJob
        from jobs.files.reading import read_job

        read, part = read_job(job, CacheJob), _parse_partition(partition)
        cluster = choose_cluster(read.cluster, workers, part)
        request = read.request(job, device=device, threads=cluster.num_threads, beside=beside, part=part)
        if dry_run:
            from jobs.cli.caches.dry_run import foretell

            return foretell(request, cluster, device, as_json=as_json)
        return _build(request, cluster, device, night, allow_versions=allow_versions, wait=wait, as_json=as_json)

    terminal.run(action, as_json=as_json, night=night)


def _build(
    request: BuildRequest,
    cluster: BuildClusterOptions,
    device: Device,
    night: Night,
    *,
    allow_versions: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Build what is missing, tell what came of it, and return the exit code."""
    from jobs.cli.caches.reports import print_report, tell_report
    from jobs.cluster.attendance import Attendance
    from jobs.cluster.builds import carry_out, lay_out_build
    from jobs.show import terminal
    from teacher_cache.building.survey import prepare_build

    prepared, pools = lay_out_build(prepare_build(request), cluster, device)
    with terminal.watching("rows", night) as watch:
        attendance = Attendance(watch.note, allow_versions=allow_versions)
        prepared, report = carry_out(prepared, cluster, pools, watch, night, attendance, wait=wait)
    tell_report(request.cache, report, night)
    print_report(request.cache, report, as_json, prepared.stages)
    return report.exit_code


def _parse_partition(text: str) -> tuple[int, int]:
    """Return (i, n), number i of n. Raises BadRequest."""
    from storage.errors import BadRequest

    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise BadRequest(f"--partition {text} is not a partition", expected="I/N with I from 0 to N - 1, such as 0/8")
    return int(i), int(n)
