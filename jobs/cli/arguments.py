"""What both programs share: their arguments, and how they start."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

JobArgument = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")]
CacheArgument = Annotated[str, typer.Argument(metavar="CACHE", help="A cache: a folder, or s3://bucket/prefix.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value, for machines.")]
# Those of student_train.feed.devices.Device, which mypy compares; importing that would import torch for `--help`.
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where models run.")]


def on_this_machine(out: Path | None) -> Path | None:
    """Return where files are to be written; an address is refused: it would be a folder called `s3:`."""
    if out is not None and re.match(r"[a-z0-9]+:/", str(out)):  # a path has one of the two strokes that it was given
        address = str(out).replace(":/", "://", 1)
        raise typer.BadParameter(f"{address} is an address; name a place on this machine, and copy it there")
    return out


WaitOption = Annotated[
    bool, typer.Option("--wait", help="Wait while another command is at the same work, in place of exit code 75.")
]
LogFormatOption = Annotated[
    Literal["text", "json"],
    typer.Option("--log-format", help="Of stderr; json: a line of JSON for each event, and no bars."),
]
MetricsOption = Annotated[
    Path | None,
    typer.Option(
        "--metrics-file",
        metavar="FILE.prom",
        help="Write figures for Prometheus there, each 30 s and at the end.",
        callback=on_this_machine,
    ),
]
AllowVersionsOption = Annotated[
    bool, typer.Option("--allow-versions", help="Use workers with another Python, torch or Stillroom than this one.")
]


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"stillroom {version('stillroom')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
]


def absolute(cache: str) -> str:
    """Return a cache's address as a worker elsewhere must be told it."""
    return cache if "://" in cache else os.path.abspath(cache)


def run_program(app: typer.Typer) -> NoReturn:
    """Run a program; where --json is asked for, a command line that makes no sense is answered in JSON too."""
    try:
        app()
    except SystemExit as ended:
        if (
            ended.code == 2 and "--json" in sys.argv[1:] and "jobs.show.terminal" not in sys.modules
        ):  # no command has begun
            from jobs.show.terminal import print_error

            print_error("UsageError", 2, "the command line makes no sense; stderr says why", do=f"{sys.argv[0]} --help")
        raise
    sys.exit(0)
