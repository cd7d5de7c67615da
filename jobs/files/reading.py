"""Read a job file: strict TOML into a frozen request, with all mistakes told at once.

What a job may say is in `cache_job` and `student_job`, apart, so that training students imports no teacher code.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ValidationError

from jobs.files.sweep import Expanded, Place, expand
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
    mistakes = [f"{_spelled(place)}: {message}" for place, message in expanded.mistakes]
    try:
        job = kind.model_validate(expanded.values, context={"folder": path.resolve().parent})
    except ValidationError as error:
        mistakes += _mistakes(kind, error, expanded)
    if mistakes:
        plural = "s" if len(mistakes) > 1 else ""
        raise BadJob(f"{path} has {len(mistakes)} mistake{plural}", found="\n".join(mistakes))
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


def _mistakes(kind: type[BaseModel], error: ValidationError, expanded: Expanded) -> list[str]:
    """Return every mistake once, however many students of the job inherit it."""
    told: dict[tuple[Place, str], str] = {}
    for detail in error.errors():
        written = expanded.place(detail["loc"], unknown_key=detail["type"] == "extra_forbidden")
        if (written, detail["msg"]) not in told:
            told[written, detail["msg"]] = _mistake(kind, detail, written)
    return list(told.values())


def _mistake(kind: type[BaseModel], detail: Any, written: Place) -> str:
    *parents, last = detail["loc"] or ("job",)
    where = _spelled(written)
    prefix = f"{where}: " if where else ""
    if detail["type"] == "extra_forbidden":
        names = _fields_at(kind, parents)
        if len(written) == 3 and written[0] == "student":
            names.append("sweep")  # no field: `expand` takes it away
        near = difflib.get_close_matches(str(last), names, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(names)}"
        return f"{prefix}unknown key; {hint}"
    if detail["type"] == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in detail["ctx"]["expected_tags"].split(",")]
        near = difflib.get_close_matches(str(detail["ctx"]["tag"]), tags, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(tags)}"
        return f"{prefix}unknown kind {detail['ctx']['tag']!r}; {hint}"
    if detail["type"] == "list_type" and isinstance(detail["input"], dict):
        return f"{prefix}write [[{last}]], one for each"
    if detail["type"] == "model_type":
        return f"{prefix}write a table, {{ key = value, … }} (found {detail['input']!r})"
    message = detail["msg"].removeprefix("Value error, ")
    found = "" if detail["type"] in ("missing", "value_error") else f" (found {detail['input']!r})"
    return f"{prefix}{message[:1].lower()}{message[1:]}{found}"


def _spelled(location: Place) -> str:
    """Return a place in the file as a reader would write it: `teacher[0].encoding.dtype`, counting from 0."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _fields_at(kind: Any, location: typing.Sequence[str | int]) -> list[str]:
    """Return the keys that are valid at a place in a job."""
    options = [kind]
    for part in location:
        options = [below for option in options for below in _below(option, part)]
    return sorted({name for model in options if _is_model(model) for name in model.model_fields})


def _below(option: Any, part: str | int) -> list[Any]:
    if _is_model(option):
        return _flat(option.model_fields[part].annotation) if part in option.model_fields else _tagged(option, part)
    arguments = typing.get_args(option)
    item = {list: 0, tuple: 0, dict: 1}.get(typing.get_origin(option))  # of tuple[X, ...] and dict[str, X]: X
    return [option] if item is None else _flat(arguments[item])


def _tagged(model: Any, part: str | int) -> list[Any]:
    """A discriminated union puts its tag into the location: keep the member that bears it."""
    tags = {
        tag
        for name in ("kind", "loss", "task")
        if name in model.model_fields
        for tag in typing.get_args(model.model_fields[name].annotation)
    }
    return [model] if part in tags else []


def _flat(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _flat(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for member in typing.get_args(annotation) for option in _flat(member)]
    return [annotation]


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)
