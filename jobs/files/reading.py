"""Read a job file: strict TOML into a frozen request, with all mistakes told at once.

What a job may say is in `cache_job` and `student_job`, apart, so that training students imports no teacher code.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from jobs.files.mistakes import mistakes, spelled
from jobs.files.sweep import expand
from storage.errors import BadJob
from storage.options import Options

Job = TypeVar("Job", bound=Options)

MOST_NAMES = 5  # that one message lists


def read_job(path: Path, kind: type[Job]) -> Job:
    """Return the job in a TOML file.

    Raises:
        BadJob: it cannot be read, or it has mistakes; all of them are listed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # less a byte-order mark, which some editors write
    except OSError as error:
        raise BadJob(f"cannot read the job file {path}", found=str(error), do="give the path of a TOML file") from None
    except UnicodeDecodeError as error:
        raise BadJob(f"cannot read the job file {path}", found=str(error), do="save it as UTF-8") from None
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadJob(f"{path} is not TOML", found=str(error)) from None
    other = {"CacheJob": "student", "StudentJob": "dataset"}.get(kind.__name__)
    if other in values:
        command = "student train" if other == "student" else "cache build"
        raise BadJob(f"{path} is a job for the other program", found=f"[[{other}]]", do=f"{command} {path}")
    expanded = expand(values)
    told = [f"{spelled(place)}: {message}" for place, message in expanded.mistakes]
    try:
        job = kind.model_validate(expanded.values, context={"folder": path.resolve().parent})
    except ValidationError as error:
        told += mistakes(kind, error, expanded)
    if told:
        raise BadJob(f"{path} has {len(told)} mistake{'s' if len(told) > 1 else ''}", found="\n".join(told))
    return job


def refuse_twice(kind: str, names: list[str]) -> None:
    """Raise ValueError if two sections of one kind have one name, or names that some disks take for one."""
    spelled: dict[str, list[str]] = {}
    for name in names:
        spelled.setdefault(name.lower(), []).append(name)
    if twice := sorted(alike for alike in spelled.values() if len(alike) > 1):
        shown = [" and ".join(sorted(set(alike))) for alike in twice]
        more = f" and {len(twice) - MOST_NAMES:,} more" if len(twice) > MOST_NAMES else ""
        same = "" if all(len(set(alike)) == 1 for alike in twice) else "; a name is a folder, in any case of letters"
        raise ValueError(f"two [[{kind}]] are named {', '.join(shown[:MOST_NAMES])}{more}{same}")
