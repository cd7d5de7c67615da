"""Read a job file: strict TOML into a frozen request, with all mistakes told at once.

What a job may say is in `cache_job` and `student_job`, apart, so that training students imports no teacher code.
"""

from __future__ import annotations

import codecs
import tomllib
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from jobs.files.mistakes import mistakes, spelled
from jobs.files.sweep import expand
from storage.errors import BadJob
from storage.format.filesystems import read_file
from storage.options import Options

Job = TypeVar("Job", bound=Options)


class Marks(NamedTuple):
    """By which keys a kind of job is known, and the command that takes it."""

    keys: frozenset[str]
    command: str


MARKS = {
    "CacheJob": Marks(frozenset({"dataset"}), "cache build"),
    "ShrinkJob": Marks(frozenset({"ways"}), "student bench"),
    "ChainJob": Marks(frozenset({"job", "student"}), "student chain"),
    "StudentJob": Marks(frozenset({"cache", "student"}), "student train"),
}
MOST_BYTES = 2**24  # of a job file
MOST_DOTS = 1000  # of a line: a dotted key takes time by the square of its parts
MOST_LEVELS = 32  # of tables and lists in it
MOST_NAMES = 5  # that one message lists


def read_job(path: Path, kind: type[Job], folder: Path | None = None) -> Job:
    """Return the job in a TOML file.

    Args:
        path: of the file.
        kind: what it must be.
        folder: where its relative paths begin; by default in its own.

    Raises:
        BadJob: it cannot be read, or it has mistakes; all of them are listed.
    """
    _check_name(path)
    try:
        text = read_file(path, MOST_BYTES).decode("utf-8-sig")  # less a byte-order mark, which some editors write
    except UnicodeDecodeError as error:  # before ValueError, of which it is a kind
        is_utf16 = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = "the byte-order mark of UTF-16" if is_utf16 else str(error)
        raise BadJob(f"cannot read the job file {path}", found=found, do="save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise BadJob(f"cannot read the job file {path}", found=str(error), do="give the path of a TOML file") from None
    if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
        raise BadJob(f"{path} is not a job", found=f"a line with more than {MOST_DOTS:,} dots")
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadJob(f"{path} is not TOML", found=str(error)) from None
    if _is_deep(values):
        raise BadJob(f"{path} is not a job", found=f"tables and lists within one another, more than {MOST_LEVELS} deep")
    _check_kind(path, values, kind.__name__)
    expanded = expand(values)
    told = [f"{spelled(place)}: {message}" for place, message in expanded.mistakes]
    try:
        job = kind.model_validate(expanded.values, context={"folder": folder or path.resolve().parent})
    except ValidationError as error:
        told += mistakes(kind, error, expanded)
    if told:
        raise BadJob(f"{path} has {len(told)} mistake{'s' if len(told) > 1 else ''}", found="\n".join(told))
    return job


def _check_kind(path: Path, values: Any, kind: str) -> None:
    """Raise BadJob if a file is a job of another command, by keys that only that one has."""
    if kind not in MARKS or MARKS[kind].keys <= values.keys():
        return
    for other, (keys, command) in MARKS.items():
        if other != kind and keys <= values.keys():
            told = sorted(keys - MARKS[kind].keys)
            found = ", ".join(f"[[{key}]]" for key in told if isinstance(values[key], list)) or ", ".join(told)
            raise BadJob(
                f"{path} is a job of {command}",
                found=found,
                expected=f"a job of {MARKS[kind].command}, with {' and '.join(sorted(MARKS[kind].keys))}",
                do=f"{command} {path}",
            )


def _check_name(path: Path) -> None:
    """Raise BadJob if a job lies where no text can say: what a run keeps of it is UTF-8, as what workers are sent."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise BadJob(f"{path.absolute()} cannot be used", found="a name that is no UTF-8", do="rename it") from None


def _is_deep(values: Any) -> bool:
    """Return whether there is more in one another than any job has; dotted keys nest without end."""
    level = [values]
    for _ in range(MOST_LEVELS):
        level = [
            below
            for each in level
            for below in (each.values() if isinstance(each, dict) else each)
            if isinstance(below, dict | list)
        ]
    return bool(level)


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
