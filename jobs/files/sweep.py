"""Multiply out the students of a job file: `[defaults]` beneath each `[[student]]`, its `[student.sweep]` into many.

It works on what TOML gives, before validation: each student that comes out is written as if by hand. Where every value
was written is kept, so that a mistake is told once, at its place in the file.

A path leads to a value within a student: ("objective", 1, "weight"). A place leads to it within the file.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.files.sweep_names import labels_of, swept_name, token

MOST_STUDENTS = 10_000  # of one sweep: more is a slip of the pen

Place = tuple[str | int, ...]
Mistake = tuple[Place, str]


class _BadKey(Exception):
    """What is wrong with one key of a sweep."""


@dataclass(frozen=True)
class Entry:
    """One `[[student]]` as it is written, above `[defaults]`."""

    number: int
    own: dict[str, Any]
    defaults: dict[str, Any]

    @cached_property
    def base(self) -> dict[str, Any]:
        """The student without its sweep."""
        return {key: value for key, value in (self.defaults | self.own).items() if key != "sweep"}

    @property
    def sweep(self) -> Any:
        """What is varied; as every key, an entry's own replaces that of `[defaults]`."""
        return self.own.get("sweep", self.defaults.get("sweep", {}))

    def place_of(self, key: str) -> Place:
        """Return where one of the student's keys is written."""
        return ("defaults", key) if key in self.defaults and key not in self.own else ("student", self.number, key)


@dataclass(frozen=True)
class Axis:
    """What varies together: one key of a sweep, or several, separated by commas.

    Attributes:
        place: of the key.
        keys: the paths as they are written, losses by their names.
        paths: the same within the student.
        rows: of each choice, the value of every path.
    """

    place: Place
    keys: tuple[tuple[str, ...], ...]
    paths: tuple[Place, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Origin:
    """Where one student of the flat list was written; of each path that varies, where that value was."""

    entry: Entry
    swept: dict[Place, Place]

    def place(self, path: Place, *, unknown_key: bool) -> Place:
        """Return where what is at a path of the student was written.

        Args:
            path: within the student.
            unknown_key: whether the path's last key is the mistake, rather than its value.
        """
        for target, written in self.swept.items():
            if path[: len(target)] == target:
                below = path[len(target) :]
                return _key_of(written) if unknown_key and not below else (*written, *below)
            if path == target[: len(path)] and not _is_there(self.entry.base, path):
                return _key_of(written)  # of a table that only the sweep makes
        match path:
            case (str(key), *rest):
                return (*self.entry.place_of(key), *rest)
        return ("student", self.entry.number, *path)


@dataclass(frozen=True)
class Expanded:
    """A job's values with a flat list of students, what is wrong with the sweeps, and where each student is from."""

    values: dict[str, Any]
    mistakes: tuple[Mistake, ...] = ()
    origins: tuple[Origin, ...] = ()

    def place(self, location: Place, *, unknown_key: bool) -> Place:
        """Return where what is at a location of `values` was written."""
        match location:
            case ("student", int(i), *path):
                return self.origins[i].place(tuple(path), unknown_key=unknown_key)
        return location


def expand(values: dict[str, Any]) -> Expanded:
    """Return a job's values with defaults and sweeps multiplied out; those of a job without students as they are.

    Students are in the order of the file; within a sweep, the key that is written first varies slowest. What is wrong
    in a sweep is left out of it, so that the rest can still be checked.
    """
    entries, defaults = values.get("student"), values.get("defaults")
    if not isinstance(entries, list):
        return Expanded(values)
    students: list[Any] = []
    origins: list[Origin] = []
    mistakes: list[Mistake] = []
    for number, own in enumerate(entries):
        if not isinstance(own, dict):  # pydantic tells what is expected
            students.append(own)
            origins.append(Origin(Entry(number, {}, {}), {}))
            continue
        entry = Entry(number, own, defaults if isinstance(defaults, dict) else {})
        axes, wrong = _read_axes(entry)
        mistakes += wrong
        for student, origin in _multiply(entry, axes):
            students.append(student)
            origins.append(origin)
    return Expanded(values | {"student": students}, tuple(dict.fromkeys(mistakes)), tuple(origins))


def _multiply(entry: Entry, axes: list[Axis]) -> Iterator[tuple[dict[str, Any], Origin]]:
    """Yield every student of a grid, the last axis varying fastest; without axes, the entry itself."""
    labels = labels_of([key for axis in axes for key in axis.keys])
    grid = itertools.product(*(range(len(axis.rows)) for axis in axes))
    for choices in itertools.islice(grid, MOST_STUDENTS):
        student = copy.deepcopy(entry.base)
        swept: dict[Place, Place] = {}
        tokens = []
        for axis, choice in zip(axes, choices, strict=True):
            for column, (path, value) in enumerate(zip(axis.paths, axis.rows[choice], strict=True)):
                _put(student, path, value)
                swept[path] = (*axis.place, choice, column) if len(axis.paths) > 1 else (*axis.place, choice)
                tokens.append(token(value))
        if tokens and "name" in student:
            student["name"] = swept_name(student["name"], labels, tokens)
        yield student, Origin(entry, swept)


def _read_axes(entry: Entry) -> tuple[list[Axis], list[Mistake]]:
    """Return what varies, and what is wrong with it."""
    place = entry.place_of("sweep")
    if not isinstance(entry.sweep, dict):
        return [], [(place, f"write one table, [{place[0]}.sweep] (found {entry.sweep!r})")]
    axes: list[Axis] = []
    mistakes: list[Mistake] = []
    taken: dict[Place, str] = {}
    for where, keys, values in _leaves(entry.sweep, place):
        try:
            paths = tuple(_find(entry, key) for key in keys)
            rows = _rows(keys, values)
            for path, key in zip(paths, keys, strict=True):
                _refuse_taken(path, taken)
                taken[path] = ".".join(key)
            axes.append(Axis(where, keys, paths, rows))
        except _BadKey as error:
            mistakes.append((where, str(error)))
    sizes = [len(axis.rows) for axis in axes]
    if math.prod(sizes) > MOST_STUDENTS:
        product = " × ".join(map(str, sizes))
        mistakes.append((place, f"{product} = {math.prod(sizes):,} students, and {MOST_STUDENTS:,} are the most"))
    return axes, mistakes


def _leaves(
    table: dict[str, Any], place: Place, above: tuple[str, ...] = ()
) -> Iterator[tuple[Place, tuple[tuple[str, ...], ...], Any]]:
    """Yield each key's place, the paths that it names, and its values; tables and dots lead deeper alike."""
    for written, value in table.items():
        parts = tuple(written.split("."))
        if isinstance(value, dict):
            yield from _leaves(value, (*place, *parts), (*above, *parts))
        else:
            keys = tuple((*above, *key.strip().split(".")) for key in written.split(","))
            yield (*place, *(parts if len(keys) == 1 else (f'"{written}"',))), keys, value


def _find(entry: Entry, key: tuple[str, ...]) -> Place:
    """Return the path of a key of the sweep: with positions for the names of losses.

    Raises:
        _BadKey: it cannot vary, or leads nowhere in this student.
    """
    student = f"student[{entry.number}]"
    if key[0] == "name":
        raise _BadKey("names are made from what varies; leave it out")
    if key[0] == "objective" and len(key) > 1 and "objective" not in entry.base:
        raise _BadKey(f"{student} has no objective whose terms could vary")
    node: Any = entry.base
    path: list[str | int] = []
    for part in key:
        if isinstance(node, list):
            position = _position(part, node, f"{student}.{'.'.join(map(str, path))}")
            path.append(position)
            node = node[position]
        elif isinstance(node, dict):
            path.append(part)
            node = node.get(part, {})
        else:
            raise _BadKey(f"`{'.'.join(map(str, path))}` is {node!r} in {student}, and has no keys")
    if entry.place_of("sweep")[0] == "defaults" and _is_there(entry.own, tuple(path)):
        raise _BadKey(f"{student} has a value of its own; leave that out, or give it a [student.sweep]")
    return tuple(path)


def _position(part: str, items: list[Any], what: str) -> int:
    """Return the position in a list that is meant by a number, or by a loss's name."""
    if part.isdecimal():
        if int(part) >= len(items):
            raise _BadKey(f"{what} has no item {part}; it has {len(items)}, counted from 0")
        return int(part)
    losses = [item.get("loss") if isinstance(item, dict) else None for item in items]
    found = [i for i, loss in enumerate(losses) if loss == part]
    if not found:
        names = sorted({loss for loss in losses if isinstance(loss, str)})
        near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
        hint = (
            f"did you mean `{near[0]}`?" if near else f"there are {', '.join(names)}" if names else "write a position"
        )
        raise _BadKey(f"{what} has no loss `{part}`; {hint}")
    if len(found) > 1:
        raise _BadKey(f"{what} has several losses `{part}`; write the position, {' or '.join(map(str, found))}")
    return found[0]


def _rows(keys: tuple[tuple[str, ...], ...], values: Any) -> tuple[tuple[Any, ...], ...]:
    """Return the choices of a key of the sweep, each as one value for every path that it names."""
    if not isinstance(values, list):
        raise _BadKey(f"write a list of values (found {values!r})")
    if not values:
        raise _BadKey("an empty list; give it values, or leave it out")
    if len(keys) > 1:
        for value in values:
            if not isinstance(value, list) or len(value) != len(keys):
                raise _BadKey(f"write lists of {len(keys)} values, one for each of its keys (found {value!r})")
    rows = tuple(tuple(value) if len(keys) > 1 else (value,) for value in values)
    first: dict[tuple[str, ...], Any] = {}
    for row, value in zip(rows, values, strict=True):
        tokens = tuple(map(token, row))
        if tokens in first:
            raise _BadKey(f"{value!r} repeats {first[tokens]!r}")
        first[tokens] = value
    return rows


def _refuse_taken(path: Place, taken: dict[Place, str]) -> None:
    for other, key in taken.items():
        shared = min(len(path), len(other))
        if path[:shared] == other[:shared]:
            raise _BadKey(f"`{key}` varies it already")


def _key_of(written: Place) -> Place:
    """Return the place of a sweep's key from that of one of its values."""
    return _key_of(written[:-1]) if isinstance(written[-1], int) else written


def _is_there(node: Any, path: Place) -> bool:
    for part in path:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _put(node: Any, path: Place, value: Any) -> None:
    for part in path[:-1]:
        node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
    node[path[-1]] = value
