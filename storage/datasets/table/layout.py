"""What a dataset promises of its columns, and how a row becomes numbers by it, and columns again.

A number takes one place of a row, as it is; a category one place for each of its values, 1 at its own. Where something
was missing when the columns were learned there is one place more, 1 where it is missing; a number that is has its
column's mean. So nothing is lost, and a teacher can be given the columns again.

Shapes: B rows, D places of a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from storage.datasets.base import Unreadable
from storage.errors import BadRequest
from storage.options import Options

EXACT = 2**24  # up to which float32 has every whole number
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")  # float() takes 1_000, nan and infinity too
WHOLE = re.compile(r"[+-]?\d+")
UNSEEN = "(unseen)"  # what a teacher is given in place of a category that nobody knew when the columns were learned

Cell = bool | int | float | str | None
"""What is written in a cell; None: nothing."""


class NumberColumn(Options):
    """A column of numbers.

    Attributes:
        missing: whether it has a place that says that there is none.
        rounded: whether whole numbers may be more than float32 can tell apart.
        mean, std: of its rows that are trained on; a student is normalised by them unless its job says otherwise.
    """

    name: str
    kind: Literal["number"] = "number"
    missing: bool
    rounded: bool = False
    mean: float
    std: Annotated[float, Field(gt=0)]

    @property
    def places(self) -> list[str]:
        return [self.name, *[f"{self.name} missing"] * self.missing]

    def fill(self, row: np.ndarray, cell: Cell, place_of: Mapping[str, int], *, unseen: bool) -> bool:
        """Write a cell into its places of a row, and return True. Raises Unreadable: it is no such number."""
        if cell is not None:
            value = number_of(self.name, cell)
            if not self.rounded and not is_exact(cell):
                raise Unreadable(f"column {self.name} has {cell!r}, which float32 cannot tell from its neighbours")
            row[0] = value
        elif self.missing:
            row[0], row[1] = self.mean, 1
        else:
            raise Unreadable(f"column {self.name} has nothing, and every row had a number when it was learned")
        return True

    def cells(self, rows: np.ndarray) -> list[Cell]:
        """Return the column of some rows, (B, its places), as a teacher is given it; None where it is missing."""
        absent = rows[:, 1] > 0 if self.missing else np.zeros(len(rows), bool)
        # the shortest decimal that is this float32: what the file says, if it has seven digits at most
        written = rows[:, 0].astype(np.float32).astype(str).astype(np.float64)
        return [None if none else value for none, value in zip(absent, written.tolist(), strict=True)]


class CategoryColumn(Options):
    """A column of categories.

    Attributes:
        type: of what is written there, all of it: what a teacher is given.
        values: they, as texts, in the order of their places.
        missing: whether it has a place that says that there is none.
    """

    name: str
    kind: Literal["category"] = "category"
    type: Literal["text", "integer", "number", "boolean"]
    values: Annotated[tuple[str, ...], Field(strict=False)]
    missing: bool

    @property
    def places(self) -> list[str]:
        return [*(f"{self.name}={value}" for value in self.values), *[f"{self.name} missing"] * self.missing]

    def fill(self, row: np.ndarray, cell: Cell, place_of: Mapping[str, int], *, unseen: bool) -> bool:
        """Write a cell into its places of a row; return whether it is a category that is known, or nothing.

        Raises:
            Unreadable: it is none, and such a row is not to have zeros.
        """
        if cell is None and self.missing:
            row[-1] = 1
        elif cell is not None and (place := place_of.get(as_written(cell, self.type))) is not None:
            row[place] = 1
        elif not unseen:
            raise Unreadable(
                f"column {self.name} has {'nothing' if cell is None else repr(as_written(cell, self.type))}, "
                f"which was in no row when its {len(self.values)} categories were learned; "
                'unseen = "zeros" in its [[dataset]] takes such rows'
            )
        else:
            return False
        return True

    def cells(self, rows: np.ndarray) -> list[Cell]:
        """Return the column of some rows, (B, its places), as a teacher is given it; None where it is missing."""
        given = self.typed
        return [given[place] if row[place] else UNSEEN for row, place in zip(rows, rows.argmax(1), strict=True)]

    @property
    def typed(self) -> list[Cell]:
        """Return what a teacher is given for each place: numbers and booleans as such, None for nothing."""
        kinds: dict[str, Callable[[str], Cell]] = {
            "text": str, "integer": int, "number": float, "boolean": "True".__eq__
        }  # fmt: skip
        return [*map(kinds[self.type], self.values), *[None] * self.missing]


Column = Annotated[NumberColumn | CategoryColumn, Field(discriminator="kind")]
_COLUMNS = TypeAdapter(list[Column])


class Layout:
    """Columns in the order of their places.

    Args:
        columns: they.
        unseen: whether a category that nobody knew leaves all its places 0; else the row cannot be read.
    """

    def __init__(self, columns: Sequence[NumberColumn | CategoryColumn], *, unseen: bool = False):
        self.columns, self._unseen = tuple(columns), unseen
        sizes = [len(column.places) for column in self.columns]
        ends = np.cumsum([0, *sizes]).tolist()
        self._at = [slice(start, stop) for start, stop in pairwise(ends)]
        self._place_of = [
            {value: place for place, value in enumerate(getattr(column, "values", ()))} for column in self.columns
        ]
        self.width = int(ends[-1])

    @classmethod
    def promised(cls, source: Mapping[str, Any] | None) -> Layout | None:
        """Return the layout that a dataset promises; None: it is of no table. Raises BadRequest: it is none."""
        if source is None or source.get("kind") != "table":
            return None
        try:
            columns = [{"name": name, **source["columns"][name]} for name in source["order"]]
            return cls(_COLUMNS.validate_python(columns), unseen=source.get("unseen") == "zeros")
        except (ValidationError, KeyError, TypeError) as error:
            raise BadRequest("a table without a promise of its columns", found=str(error)) from None

    def promise(self) -> dict[str, Any]:
        """Return `columns` by their names, the `order` of their places, and what a student normalises them by."""
        columns = {column.name: column.model_dump(mode="json", exclude={"name"}) for column in self.columns}
        mean, std = self.normalisation
        return {"columns": columns, "order": self.names, "normalise": {"mean": list(mean), "std": list(std)}}

    @property
    def names(self) -> list[str]:
        """Return the names of the columns."""
        return [column.name for column in self.columns]

    @property
    def places(self) -> list[str]:
        """Return what each place of a row is, D in words."""
        return [place for column in self.columns for place in column.places]

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each place, D each: 0 and 1 of all that is no number."""
        mean, std = [0.0] * self.width, [1.0] * self.width
        for column, at in zip(self.columns, self._at, strict=True):
            if isinstance(column, NumberColumn):
                mean[at.start], std[at.start] = column.mean, column.std
        return tuple(mean), tuple(std)

    def row(self, cells: Sequence[Cell]) -> tuple[np.ndarray, list[str]]:
        """Return a row as numbers, float32 (D,), and the columns whose category nobody knew.

        Raises:
            Unreadable: a cell is not what its column promises.
        """
        row, unseen = np.zeros(self.width, np.float32), []
        for column, at, place_of, cell in zip(self.columns, self._at, self._place_of, cells, strict=True):
            if not column.fill(row[at], cell, place_of, unseen=self._unseen):
                unseen.append(column.name)
        return row, unseen

    def table(self, rows: np.ndarray) -> dict[str, list[Cell]]:
        """Return the columns of some rows, (B, D), by name: the numbers and categories that a row was made of."""
        return {column.name: column.cells(rows[:, at]) for column, at in zip(self.columns, self._at, strict=True)}


def number_of(column: str, cell: Cell) -> float:
    """Return a cell as a number that float32 has, or nearly. Raises Unreadable.

    >>> number_of("age", " 1e3 "), number_of("age", 7)
    (1000.0, 7.0)
    >>> number_of("age", "1_000")
    Traceback (most recent call last):
    storage.errors.Unreadable: column age has no number: '1_000'
    """
    written = isinstance(cell, str) and NUMBER.fullmatch(cell.strip())
    if cell is None or isinstance(cell, bool) or (isinstance(cell, str) and not written):
        raise Unreadable(f"column {column} has no number: {cell!r}")
    value = float(cell)
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise Unreadable(f"column {column} has a number that float32 cannot hold: {cell!r}")
    return value


def is_exact(number: float | str) -> bool:
    """Return whether float32 has a whole number; of others it has the nearest, and that is near enough.

    >>> is_exact(2**24), is_exact(2**24 + 1), is_exact("9007199254740993"), is_exact(0.1)
    (True, False, False, True)
    """
    value = float(number)
    if abs(value) <= EXACT or not value.is_integer():
        return True
    # as it is written: above 2**53 float64 rounds, and what it makes of 2**53 + 1 float32 has
    written = int(number) if WHOLE.fullmatch(str(number).strip()) else value
    return float(np.float32(value)) == written


def as_written(cell: Cell, kind: str) -> str:
    """Return a category as the text that is promised of it, whatever the file.

    >>> as_written("true", "boolean"), as_written(3.0, "integer"), as_written("01", "text"), as_written("2", "number")
    ('True', '3', '01', '2.0')
    """
    text = str(cell).strip()
    if kind == "boolean":
        return text.capitalize()
    if kind == "integer" and WHOLE.fullmatch(text):
        return str(int(text))  # no float, which has not all of them: codes above 2**53 would be one
    if kind in ("integer", "number") and NUMBER.fullmatch(text):
        value = float(text)
        # a whole number may be written as 3.0, where others of its column are missing
        return text if kind == "integer" and not value.is_integer() else str(int(value) if kind == "integer" else value)
    return text
