"""The kind `webdataset` of a job where rows are texts: members of tars, or keys of their JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from storage.datasets.base import LocalFile, Unreadable
from storage.datasets.published.tar_names import find_tars, left_out, root_of
from storage.datasets.published.tars import TarSample, Walk, places_of
from storage.datasets.text.labelled import LabelledTextSource
from storage.datasets.text.reading.cutting import LONGEST_LINE
from storage.datasets.text.reading.rows import TOO_LONG, Columns, Row, cut, decoded_line
from storage.datasets.text.reading.where import Elsewhere
from storage.errors import MissingSource

LOOKED_AT = 100  # samples, for the members that a job names


class TarTexts(LabelledTextSource):
    """Samples of tars, each a text with one class or none; pictures beside them are left alone.

    A column is a member by what follows the key of its sample, such as `txt`, or a key of a member of JSON:
    `json.caption`.

    Attributes:
        path: a tar; a folder of them, to any depth; or a pattern such as `shard-{000000..000012}.tar`.
    """

    kind: Literal["webdataset"]  # type: ignore[assignment]  # Pydantic chooses by it

    suffixes = (".tar",)

    @model_validator(mode="after")
    def _names(self) -> Self:
        if self.header is not None or self.quotes is not None:
            raise ValueError("`header` and `quotes` are of tables of lines, not of tars")
        if numbers := [column for column in (*self._texts, self.label) if isinstance(column, int)]:
            raise ValueError(f"members of a tar have names, such as `txt` or `json.caption`, not {numbers[0]}")
        return self

    def content(self) -> dict[str, Any]:
        return super().content() | {"kind": "text"}  # what a row is; that it lies in a tar is a matter of where

    def at(self, file: str) -> Path:
        return root_of(self.path) / file

    def file_of(self, path: Path) -> str:
        return path.relative_to(root_of(self.path)).as_posix()

    def paths(self) -> list[Path]:
        root, names = find_tars(self.path, self._recorded)
        return [root / name for name in names]

    def passed_over(self) -> list[str]:
        return left_out(self.path, self._recorded)

    def row_id(self, file: str, number: int, where: str) -> str:
        if not where.isprintable():  # surrogates stand for bytes that are not UTF-8, which no table can hold
            raise MissingSource(f"a name in {file} is not printable UTF-8", found=repr(where), do="write the tar anew")
        return f"{file}/{where}"

    def text_bytes(self, path: Path) -> int:
        return sum(_bytes_of(sample, self._columns) for _, sample in places_of(path).samples(0, 2**62))

    @property
    def _columns(self) -> Columns:
        # a number is the place of a class, as it is for pictures
        return super()._columns._replace(names_of=tuple(self.classes) if isinstance(self.classes, list) else ())

    def _rows(self, path: Path) -> Iterator[tuple[str, Row | Unreadable]]:
        return tar_rows(path, self._columns, tuple(self.part))


def tar_rows(
    path: Path, columns: Columns, part: tuple[float, ...] = (0.0, 1.0)
) -> Iterator[tuple[str, Row | Unreadable]]:
    """Yield (key, row) of the samples of a part of a tar.

    Raises:
        MissingSource: none of the first samples has a member that is named; or it is no whole tar.
    """
    _check_members(path, columns, LocalFile.of(path))
    start, stop = (0, 2**62) if part == (0.0, 1.0) else cut(places_of(path).count().rows, part)
    for walk, sample in places_of(path).samples(start, stop - start):
        try:
            row: Row | Unreadable = columns.row(_values(walk, sample, columns))
        except Elsewhere:
            continue
        except Unreadable as reason:
            row = reason
        yield sample.key, row


def _values(walk: Walk, sample: TarSample, columns: Columns) -> dict[str, Any]:
    """Return what a sample has in some columns. Raises Unreadable: it cannot be read."""
    read: dict[str, Any] = {}
    values = {column: _value(walk, sample, column, read) for column in _asked(columns)}
    if columns.label is not None and columns.names_of:
        label = values[str(columns.label)]
        text = label.strip() if isinstance(label, str) else ""
        if text not in columns.names_of and text.removeprefix("-").isdecimal() and len(text) < 19:
            values[str(columns.label)] = int(text)
    return values


def _value(walk: Walk, sample: TarSample, column: str, read: dict[str, Any]) -> Any:
    """Return what is written in a column: of a member of its own as a text, or as JSON has it; None: nothing."""
    if (of := _member_of(sample.members, column)) is None:
        return None
    if of not in read:
        if sample.members[of].size > LONGEST_LINE:
            raise Unreadable(f"has a *.{of} that {TOO_LONG}")
        text = decoded_line(walk.bytes_of(sample.members[of]))
        read[of] = text if of == column else _object(text, of)
    return read[of] if of == column else read[of].get(column.removeprefix(f"{of}."))


def _object(text: str, of: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"has a *.{of} that is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Unreadable(f"has a *.{of} that is {type(value).__name__}, not an object")
    return value


def _member_of(members: Mapping[str, Any], column: str) -> str | None:
    """Return the member that a column is of, by what follows its key.

    >>> _member_of({"txt": 1, "json": 2}, "json.caption"), _member_of({"meta.json": 1}, "meta.json.text")
    ('json', 'meta.json')
    >>> _member_of({"txt": 1}, "txt"), _member_of({"txt": 1}, "txt.caption")
    ('txt', None)
    """
    if column in members:
        return column
    within = (name for name in members if name.rpartition(".")[2] == "json" and column.startswith(f"{name}."))
    return max(within, key=len, default=None)


def _asked(columns: Columns) -> list[str]:
    asked = [*columns.texts, *([] if columns.label is None else [columns.label]), *columns.where.columns]
    return list(dict.fromkeys(map(str, asked)))


def _bytes_of(sample: TarSample, columns: Columns) -> int:
    found = {_member_of(sample.members, str(column)) for column in columns.texts} - {None}
    return sum(sample.members[name].size for name in found if name is not None)


@lru_cache(maxsize=1024)
def _check_members(path: Path, columns: Columns, version: LocalFile) -> None:
    """Raise MissingSource if none of a tar's first samples has a member that a job names."""
    seen = [sample.members for _, sample in places_of(path).samples(0, LOOKED_AT)]
    for column in _asked(columns):
        if seen and all(_member_of(members, column) is None for members in seen):
            kinds = sorted({kind for members in seen for kind in members})
            raise MissingSource(
                f"no sample of {path} has a member {column}",
                found=", ".join(f"*.{kind}" for kind in kinds) + f" in its first {len(seen)} samples",
                expected="what follows the key of a member, such as `txt`; or of a key in JSON `json.caption`",
                do="name the members in the job: column = …, label = …",
            )
