"""What is wrong in a job file, in the words of whoever wrote it: each mistake once, at the place where it stands."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ValidationError

from jobs.files.sweep import Expanded, Place

FEW = 12  # names that fit into a message beside a guess
DISCRIMINATORS = ("kind", "loss", "task")

# What would be valid, by pydantic's name of the mistake, from the limits that it gives.
EXPECTED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than_equal": lambda limits: f"at least {_number(limits['ge'])}",
    "greater_than": lambda limits: f"more than {_number(limits['gt'])}",
    "less_than_equal": lambda limits: f"at most {_number(limits['le'])}",
    "less_than": lambda limits: f"less than {_number(limits['lt'])}",
    "too_short": lambda limits: f"at least {limits['min_length']} of them",
    "too_long": lambda limits: f"at most {limits['max_length']} of them",
    "string_too_short": lambda limits: "some text",
    "literal_error": lambda limits: str(limits["expected"]),
    "finite_number": lambda limits: "a finite number",
    "int_type": lambda limits: "a whole number",
    "float_type": lambda limits: "a number",
    "bool_type": lambda limits: "true or false",
    "string_type": lambda limits: 'text, "…"',
    "path_type": lambda limits: 'a path, "…"',
    "list_type": lambda limits: "a list, [ … ]",
    "tuple_type": lambda limits: "a list, [ … ]",
    "dict_type": lambda limits: "a table, { key = value, … }",
    "model_type": lambda limits: "a table, { key = value, … }",
}


class _Found(NamedTuple):
    """One thing that pydantic has told.

    Attributes:
        place: where it is written.
        member: whether it is of one of several types that the value may have.
        detail: as pydantic tells it.
        loc: where it is in the job that is checked, with the names of types.
    """

    place: Place
    member: bool
    detail: Any
    loc: Place


def mistakes(kind: type[BaseModel], error: ValidationError, expanded: Expanded) -> list[str]:
    """Return every mistake once, however many students of the job inherit it."""
    by_place: dict[Place, list[_Found]] = {}
    for detail in error.errors():
        keys, member = _keys(kind, detail["loc"])
        place = expanded.place(keys, unknown_key=detail["type"] == "extra_forbidden")
        by_place.setdefault(place, []).append(_Found(place, member, detail, detail["loc"]))
    told: dict[str, None] = {}
    for place, found in by_place.items():
        below = any(len(other) > len(place) and other[: len(place)] == place for other in by_place)
        for line in _lines(kind, found, below=below):
            told[line] = None
    return list(told)


def spelled(place: Place) -> str:
    """Return a place in the file as a reader would write it: `teacher[0].encoding.dtype`, counting from 0."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def _lines(kind: type[BaseModel], found: Sequence[_Found], *, below: bool) -> list[str]:
    """Return the mistakes of one place; of several types that a value may have, what the nearest of them lacks.

    Args:
        kind: of the job.
        found: at the place.
        below: whether something further down is wrong too; a type that has no such place is then not the one meant.
    """
    members = [each for each in found if each.member and each.detail["type"] in EXPECTED]
    lines = [_line(kind, each) for each in found if each not in members]
    near = [each for each in members if not each.detail["type"].endswith("_type")]
    if members and (near or not below):
        wanted = dict.fromkeys(_expected(each.detail) for each in near or members)
        lines.append(_prefixed(members[0].place, f"expected {', or '.join(wanted)}{_input(members[0].detail)}"))
    return lines


def _line(kind: type[BaseModel], found: _Found) -> str:
    """Return one mistake as a line: where it is in the job, what is wrong, what was expected."""
    detail, written = found.detail, found.place
    *parents, last = found.loc or ("job",)
    match detail["type"]:
        case "extra_forbidden":
            names = _fields_at(kind, parents)
            if len(written) == 3 and written[0] == "student":
                names.append("sweep")  # no field: `expand` takes it away
            message = f"unknown key; {_hint(str(last), names, '`')}"
        case "missing":
            about = [text for text in _descriptions_at(kind, parents, str(last)) if text]
            message = "; ".join(["missing", *about[:1]])
        case "union_tag_invalid":
            tags = [tag.strip(" '") for tag in detail["ctx"]["expected_tags"].split(",")]
            message = f"unknown kind {detail['ctx']['tag']!r}; {_hint(str(detail['ctx']['tag']), tags, chr(39))}"
        case "union_tag_not_found" if not isinstance(detail["input"], dict):
            message = f"expected {EXPECTED['dict_type']({})}{_input(detail)}"
        case "union_tag_not_found":
            name = detail["ctx"]["discriminator"].strip("'")
            message = f"`{name}` is missing; there are {', '.join(_tags_at(kind, found.loc, name))}"
        case "list_type" if isinstance(detail["input"], dict):
            message = f"write [[{last}]], one for each"
        case known if known in EXPECTED:
            message = f"expected {_expected(detail)}{_input(detail)}"
        case "value_error":
            message = _small(detail["msg"].removeprefix("Value error, "))
        case _:
            message = f"{_small(detail['msg'])}{_input(detail)}"
    return _prefixed(written, message)


def _prefixed(place: Place, message: str) -> str:
    return f"{spelled(place)}: {message}" if place else message


def _small(message: str) -> str:
    return f"{message[:1].lower()}{message[1:]}"


def _expected(detail: Any) -> str:
    return EXPECTED[detail["type"]](detail.get("ctx", {}))


def _number(limit: Any) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _input(detail: Any) -> str:
    value = detail["input"]
    return f" (found {str(value).lower() if isinstance(value, bool) else repr(value)})"


def _hint(name: str, names: Sequence[str], quote: str) -> str:
    """Return what may have been meant: the name that is abbreviated, or the nearest, else all there are."""
    near = [one for one in names if "_" in one and "".join(part[:1] for part in one.split("_")) == name]
    near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"did you mean {quote}{near[0]}{quote}?" if near else ""
    every = f"there are {', '.join(names)}"
    return " ".join(filter(None, (guess, every if len(names) <= FEW and quote == "'" else ""))) or every


def _keys(kind: type[BaseModel], location: Place) -> tuple[Place, bool]:
    """Return a place without the names of types that pydantic puts into it, and whether its last part was one."""
    options: list[Any] = [kind]
    kept: list[str | int] = []
    member = False
    for part in location:
        tagged = [each for option in options if _is_model(option) for each in _tagged(option, part)]
        below = [each for option in options for each in _below(option, part)]
        values = [option for option in options if option is not type(None)]  # of `X | None` X alone has parts
        table = all(_is_model(option) or typing.get_origin(option) is dict for option in values)
        member = isinstance(part, str) and (bool(tagged and len(options) > 1) or not table)
        if not member:
            kept.append(part)
        options = tagged if member and tagged else below or options
    return tuple(kept), member


def _fields_at(kind: Any, keys: Sequence[str | int]) -> list[str]:
    """Return the keys that are valid at a place in a job."""
    return sorted({name for model in _models_at(kind, keys) for name in model.model_fields})


def _descriptions_at(kind: Any, keys: Sequence[str | int], name: str) -> list[str | None]:
    fields = (model.model_fields.get(name) for model in _models_at(kind, keys))
    return [field.description for field in fields if field is not None]


def _tags_at(kind: Any, keys: Sequence[str | int], name: str) -> list[str]:
    """Return the values of a discriminator that a table at a place may have."""
    fields = (model.model_fields.get(name) for model in _models_at(kind, keys))
    return list(dict.fromkeys(tag for field in fields if field for tag in typing.get_args(field.annotation)))


def _models_at(kind: Any, keys: Sequence[str | int]) -> list[Any]:
    options = [kind]
    for part in keys:
        # a tag first: `factory` is a kind of datasets, and a key of that kind
        tagged = [each for option in options if _is_model(option) for each in _tagged(option, part)]
        options = tagged if len(options) > 1 and tagged else [each for o in options for each in _below(o, part)]
    return [option for option in options if _is_model(option)]


def _below(option: Any, part: str | int) -> list[Any]:
    if _is_model(option):
        return _flat(option.model_fields[part].annotation) if part in option.model_fields else _tagged(option, part)
    arguments = typing.get_args(option)
    item = {list: 0, tuple: 0, dict: 1}.get(typing.get_origin(option))  # of tuple[X, ...] and dict[str, X]: X
    return [option] if item is None or (isinstance(part, str) and item == 0) else _flat(arguments[item])


def _tagged(model: Any, part: str | int) -> list[Any]:
    """A discriminated union puts its tag into the location: keep the member that bears it, or says that it is it."""
    tags = {
        tag
        for name in ("kind", "loss", "task")
        if name in model.model_fields
        for tag in typing.get_args(model.model_fields[name].annotation)
    }
    return [model] if part in tags or part == getattr(model, "rows_are", None) else []


def _flat(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _flat(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for member in typing.get_args(annotation) for option in _flat(member)]
    return [annotation]


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)
