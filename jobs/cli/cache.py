"""`cache`: build a cache of soft targets, and look into it.

Thin on purpose: every command parses, calls a room, prints. The rooms are imported inside the commands, so that
`cache --help` costs nothing.
"""

from __future__ import annotations

from pathlib import Path
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
    VersionOption,
    WaitOption,
    run_program,
)
from jobs.cli.cache_audit import verify
from jobs.cli.cache_copy import copy, diff, publish
from jobs.cli.cache_keeping import compact, gc
from jobs.cli.cache_manifest import manifest
from jobs.cli.cache_plan import plan
from jobs.cli.cache_recode import recode

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from storage.cache import Cache, Catalogue
    from storage.format.stages import Stage

app = typer.Typer(
    help="Run teachers over datasets once; keep their soft targets and features.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

StatusArgument = Annotated[
    str, typer.Argument(metavar="CACHE|JOB.toml", help="A cache: a folder, or s3://bucket/prefix; or the job of one.")
]


@app.callback()
def _program(version: VersionOption = False) -> None:
    pass


app.command()(plan)
app.command()(recode)
app.command()(verify)
app.command()(manifest)
app.command()(gc)
app.command()(compact)
app.command()(copy)
app.command()(publish)
app.command()(diff)


@app.command()
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
        from jobs.cli.building import (
            carry_out,
            choose_cluster,
            lay_out_build,
            parse_partition,
            print_dry_run,
            print_report,
            tell_report,
        )
        from jobs.cluster.attendance import Attendance
        from jobs.files.cache_job import CacheJob
        from jobs.files.reading import read_job
        from teacher_cache.building.survey import prepare_build

        read, part = read_job(job, CacheJob), parse_partition(partition)
        cluster = choose_cluster(read.cluster, workers, part)
        request = read.request(job, device=device, threads=cluster.num_threads, beside=beside, part=part)
        libraries = 0
        if dry_run:  # before anything is read, which this process would hold and a worker does not
            from teacher_cache.building.memory import hold_libraries

            libraries = hold_libraries(read.teacher)
        prepared = prepare_build(request)
        prepared, pools = lay_out_build(prepared, cluster, device, always=dry_run)
        if dry_run:
            if prepared.catalogue is not None:
                prepared.catalogue.ledger()  # refuses what the build would refuse: a shard of another cache
            print_dry_run(prepared, pools, libraries, cluster, as_json)
            return 0
        with terminal.watching("rows", night) as watch:
            attendance = Attendance(watch.note, allow_versions=allow_versions)
            prepared, report = carry_out(prepared, cluster, pools, watch, night, attendance, wait=wait)
        tell_report(request.cache, report, night)
        print_report(request.cache, report, as_json, prepared.stages)
        return report.exit_code

    terminal.run(action, as_json=as_json, night=night)


@app.command()
def status(cache: StatusArgument, as_json: JsonOption = False) -> None:
    """Show rows done and missing, bytes and rate (rows/s of one worker), per dataset, teacher and view.

    Of a cache that is what it holds or has begun; of a job all that the job asks for, begun or not.
    """
    from jobs.show import terminal

    def action() -> int:
        from storage.cache.lease import read_builders
        from storage.cache.standing import standings
        from storage.cache.status import read_status
        from storage.errors import RowsMissing

        opened, catalogue, asked = _open_asked(cache)
        ledger = catalogue.ledger()
        stages, stands = read_status(catalogue, ledger, asked), standings(catalogue, ledger)
        builders = read_builders(opened.objects)
        if as_json:
            terminal.print_json(
                {
                    "cache": opened.url,
                    "stages": stages.to_dicts(),
                    "teachers": [standing.as_values() for standing in stands],
                    "builders": [builder.as_values() for builder in builders],
                    "notice": opened.notice,
                }
            )
        else:
            _print_stages(opened.url, stages)
            for line in (*(standing.note for standing in stands), *(builder.told for builder in builders)):
                terminal.out.print(line, markup=False)
            _print_notice(opened)
        return RowsMissing.exit_code if _lacks(stages) else 0

    terminal.run(action, as_json=as_json, answers=True)


def _open_asked(place: str) -> tuple[Cache, Catalogue, Sequence[Stage] | None]:
    """Return a cache, what it holds, and the stages that a job asks of it; None where a cache is named, not a job.

    Raises:
        RowsMissing: the job's cache is not there yet.
    """
    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job
    from jobs.show.notice import open_cache
    from storage.cache import Cache
    from storage.errors import RowsMissing
    from teacher_cache.building.asked import asked_stages

    if not place.endswith(".toml"):
        opened = open_cache(place)
        return opened, opened.catalogue(), None
    job = read_job(Path(place), CacheJob)
    if Cache.find(job.cache) is None:
        raise RowsMissing(f"{job.cache} is not there: nothing of it is built", do=f"cache build {place}")
    opened = open_cache(job.cache)
    catalogue = opened.catalogue()
    return opened, catalogue, asked_stages(job.sources, job.teacher, job.views, catalogue.datasets)


def _print_stages(url: str, stages: pl.DataFrame) -> None:
    import polars as pl

    from jobs.show.tables import print_table

    shown = stages.select(
        "dataset",
        "teacher",
        "view",
        done=pl.col("rows_done") - pl.col("quarantined"),
        missing="rows_missing",
        unreadable="quarantined",
        shards=pl.format("{}/{}", "shards_done", "shards"),
        bytes="bytes",
        **{"rows/s": "rows_per_s"},
    )
    print_table(shown, title=url)


def _lacks(stages: pl.DataFrame) -> bool:
    """Return whether anything is missing; of a text rows that are missing are not counted, but their shards are."""
    import polars as pl

    lacking = stages.select(
        pl.sum("rows_missing"),
        pl.sum("shards") - pl.sum("shards_done"),
        pl.sum("quarantined"),
        unplanned=pl.col("shards").is_null().sum(),
    )
    return any(lacking.row(0))


@app.command()
def info(cache: CacheArgument, as_json: JsonOption = False) -> None:
    """Show what a cache promises: fingerprints, encodings, features, provenance."""
    from jobs.show import terminal

    def action() -> int:
        from jobs.show.notice import open_cache
        from jobs.show.tables import print_tree
        from storage.cache.standing import standings
        from storage.cache.status import read_info

        opened = open_cache(cache)
        catalogue = opened.catalogue()
        found, stands = read_info(catalogue), standings(catalogue, catalogue.ledger())
        if as_json:
            said = {"teachers": [standing.as_values() for standing in stands], "notice": opened.notice}
            terminal.print_json(found | said)
        else:
            print_tree(cache, found)
            for standing in stands:
                terminal.out.print(standing.note, markup=False)
            _print_notice(opened)
        return 0

    terminal.run(action, as_json=as_json, answers=True)


@app.command()
def query(
    cache: CacheArgument,
    sql: Annotated[
        str, typer.Argument(metavar="SELECT", help='SQL over the table "samples", or over a dataset\'s own.')
    ],
    as_json: JsonOption = False,
) -> None:
    """Ask the per-sample table: label, split, each teacher's top class, entropy and so on."""
    from jobs.show import terminal

    def action() -> int:
        from jobs.show.notice import open_cache
        from jobs.show.tables import print_table
        from storage.cache.query import query_samples

        rows = query_samples(open_cache(cache), sql)
        if as_json:
            terminal.print_json(rows.to_dicts())
        else:
            print_table(rows)
        return 0

    terminal.run(action, as_json=as_json, answers=True)


def _print_notice(opened: Cache) -> None:
    from jobs.show import terminal
    from jobs.show.notice import notice_of

    if (notice := notice_of(opened)) is not None:
        terminal.out.print(notice, markup=False, soft_wrap=True)


def main() -> None:
    """Run the program."""
    run_program(app)
