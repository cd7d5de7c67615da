"""Arguments that both programs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

JobArgument = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")]
CacheArgument = Annotated[str, typer.Argument(metavar="CACHE", help="A cache: a folder, or s3://bucket/prefix.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value, for machines.")]
Device = Literal["auto", "cpu", "cuda"]
DeviceOption = Annotated[Device, typer.Option(help="Where models run.")]
