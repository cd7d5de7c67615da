"""`cache`: build a cache of soft targets, and look into it.

Thin on purpose: every command parses, calls a room, prints. The rooms are imported inside the commands, so that
`cache --help` costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.arguments import (
    CacheArgument,
    JobArgument,
    JsonOption,
    VersionOption,
    run_program,
)
from jobs.cli.caches.building import build
from jobs.cli.caches.copying import copy, diff, publish
from jobs.cli.caches.keeping import compact, gc
from jobs.cli.caches.planning import plan
from jobs.cli.caches.recoding import recode
from jobs.cli.caches.verifying import verify
from jobs.cluster.heaps import ONE, limit_heaps

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
app.command()(build)
app.command()(recode)
app.command()(verify)
app.command()(gc)
app.command()(compact)
app.command()(copy)
app.command()(publish)
app.command()(diff)


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
    limit_heaps(ONE)
    run_program(app)
