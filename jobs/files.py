"""Job files: strict TOML into frozen requests, with all mistakes told at once.

A section's own fields live in the room that uses it; here they are only put together.
"""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from jobs.cluster import ClusterOptions
from storage.datasets import AnySource
from storage.errors import BadJob
from storage.options import JobPath, Options, Url
from student_train.options import DataOptions, StudentOptions
from teacher_cache.teachers import TeacherOptions


class CacheJob(Options):
    """A whole `*.cache.toml`.

    Attributes:
        cache: where the cache is, a folder or an object store's prefix.
        dataset: sources of samples, one `[[dataset]]` each.
        teacher: one `[[teacher]]` each; a cache without teachers is enough to train on labels.
        cluster: where tasks run; decides nothing about what is computed.
    """

    cache: Url
    dataset: Annotated[list[AnySource], Field(min_length=1)]
    teacher: list[TeacherOptions] = Field(default=[])
    cluster: ClusterOptions = ClusterOptions()

    @model_validator(mode="after")
    def _names(self) -> Self:
        datasets = [source.name for source in self.dataset]
        _refuse_twice("dataset", datasets)
        _refuse_twice("teacher", [teacher.name for teacher in self.teacher])
        for teacher in self.teacher:
            if unknown := sorted(set(teacher.datasets or ()) - set(datasets)):
                there = ", ".join(datasets)
                raise ValueError(
                    f"teacher {teacher.name} names unknown datasets {', '.join(unknown)}; there are {there}"
                )
        return self


class StudentJob(DataOptions):
    """A whole `*.students.toml`; the fields of DataOptions stand at its top.

    Attributes:
        cache: where rows are read.
        runs: folder of the runs, one below it for each student.
        defaults: merged beneath every `[[student]]`.
        student: one `[[student]]` each.
    """

    cache: Url
    runs: JobPath
    defaults: dict[str, Any] = Field(default={})
    student: Annotated[list[StudentOptions], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _merge_defaults(cls, values: Any) -> Any:
        defaults, students = values.get("defaults"), values.get("student")
        if isinstance(defaults, dict) and isinstance(students, list):
            values = values | {"student": [defaults | s if isinstance(s, dict) else s for s in students]}
        return values

    @model_validator(mode="after")
    def _names(self) -> Self:
        _refuse_twice("student", [student.name for student in self.student])
        return self


Job = TypeVar("Job", bound=Options)


def read_job(path: Path, kind: type[Job]) -> Job:
    """Return the job in a TOML file.

    Raises:
        BadJob: it cannot be read, or it has mistakes; all of them are listed.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadJob(f"cannot read the job file {path}", found=str(error), do="give the path of a TOML file") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadJob(f"{path} is not TOML", found=str(error)) from None
    try:
        return kind.model_validate(values, context={"folder": path.resolve().parent})
    except ValidationError as error:
        details = [_where_written(values, detail) for detail in error.errors()]
        mistakes = list(dict.fromkeys(_mistake(kind, detail) for detail in details))
        raise BadJob(
            f"{path} has {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}", found="\n".join(mistakes)
        ) from None


def _refuse_twice(kind: str, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two [[{kind}]] are named {', '.join(twice)}")


def _where_written(values: dict[str, Any], detail: Any) -> Any:
    """Return a mistake of `[defaults]` as one, not as one of each student that inherits it."""
    match detail["loc"]:
        case ("student", int(i), str(key), *rest) if key in values.get("defaults", {}):
            own = values["student"][i]
            if isinstance(own, dict) and key not in own:
                return detail | {"loc": ("student", i, key, *rest), "written": ("defaults", key, *rest)}
    return detail


def _mistake(kind: type[BaseModel], detail: Any) -> str:
    *parents, last = detail["loc"] or ("job",)
    where = _spelled(detail.get("written", detail["loc"]))
    prefix = f"{where}: " if where else ""
    if detail["type"] == "extra_forbidden":
        names = _fields_at(kind, parents)
        near = difflib.get_close_matches(str(last), names, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(names)}"
        return f"{prefix}unknown key; {hint}"
    if detail["type"] == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in detail["ctx"]["expected_tags"].split(",")]
        near = difflib.get_close_matches(str(detail["ctx"]["tag"]), tags, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(tags)}"
        return f"{prefix}unknown kind {detail['ctx']['tag']!r}; {hint}"
    message = detail["msg"].removeprefix("Value error, ")
    found = "" if detail["type"] in ("missing", "value_error") else f" (found {detail['input']!r})"
    return f"{prefix}{message[:1].lower()}{message[1:]}{found}"


def _spelled(location: typing.Sequence[str | int]) -> str:
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
        for name in ("kind", "loss")
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
