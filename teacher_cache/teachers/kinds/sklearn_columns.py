"""A table's columns by their names, as an estimator of scikit-learn was fitted on: numbers, and categories as written.

Shapes: B rows of a batch, D places of a row.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from storage.datasets.table import Layout
from storage.datasets.table.layout import UNSEEN, CategoryColumn, Cell
from storage.datasets.table.learning import MISSING_WORDS
from storage.errors import BadTeacher

SHOWN = 6


class ByName:
    """Makes a frame of rows, with the columns that an estimator knows, in its order.

    Args:
        layout: of the table.
        estimator: fitted on columns with names.
        what: it is, in words.

    Raises:
        BadTeacher: the table lacks some of them; or the estimator knows none of the categories of one, as where it was
            fitted on texts and the table has numbers.
    """

    def __init__(self, layout: Layout, estimator: Any, what: str):
        self.layout = layout
        self._names = [str(name) for name in estimator.feature_names_in_]
        if absent := [name for name in self._names if name not in layout.names]:
            near = [match for name in absent for match in difflib.get_close_matches(name, layout.names, 1)]
            raise BadTeacher(
                f"the {what} was fitted on columns that the table has not",
                found=", ".join(layout.names),
                expected=", ".join(self._names) + f"  (missing: {', '.join(absent)})",
                do="name them in `numeric` or `categorical` of the [[dataset]]"
                + (f"; is it {', '.join(near)}?" if near else ""),
            )
        known = {name: set(categories.tolist()) for name, categories in _categories(estimator, self._names)}
        self._columns = {column.name: column for column in layout.columns}
        for name, values in known.items():
            _check_known(self._columns[name], values, what)
        # what it was fitted on: pandas has NaN where nothing is, Polars None
        self._nothing = {name: None if None in known.get(name, ()) else math.nan for name in self._names}

    def frame(self, rows_BD: np.ndarray) -> pl.DataFrame:
        """Return the columns of some rows."""
        cells = self.layout.table(rows_BD)
        return pl.DataFrame([self._series(name, cells[name]) for name in self._names])

    def _series(self, name: str, cells: list[Cell]) -> pl.Series:
        column = self._columns[name]
        numbers = not isinstance(column, CategoryColumn) or column.type in ("integer", "number")
        if numbers and UNSEEN not in cells:
            whole = isinstance(column, CategoryColumn) and column.type == "integer" and not column.missing
            given = [math.nan if cell is None else cell for cell in cells]
            return pl.Series(name, given, pl.Int64 if whole else pl.Float64)  # as a reader of tables has it
        assert isinstance(column, CategoryColumn)
        if column.type == "boolean" and not column.missing and UNSEEN not in cells:
            return pl.Series(name, cells, pl.Boolean)
        nothing = self._nothing[name]
        return pl.Series(name, [nothing if cell is None else cell for cell in cells], pl.Object)


def _check_known(column: Any, values: set[Any], what: str) -> None:
    """Raise BadTeacher if an encoder knows none of a column's categories: it would take every row for unknown."""
    if not isinstance(column, CategoryColumn):
        return  # of numbers the encoder says it itself
    cells = {cell for cell in column.typed if cell is not None}
    if cells and not cells & values:
        raise BadTeacher(
            f"the {what} knows none of the categories of column {column.name}",
            found=", ".join(map(repr, list(cells)[:SHOWN])),
            expected=", ".join(map(repr, sorted(values, key=str)[:SHOWN])),
            do="fit it on the column as the table has it: whole numbers as numbers, 01 as a text, True and False as "
            "booleans",
        )
    _check_spelling(column, cells - values, values - cells, what)


def _check_spelling(column: CategoryColumn, unknown: set[Any], others: set[Any], what: str) -> None:
    """Raise BadTeacher if categories are written otherwise than an encoder knows them: it would ignore them.

    Args:
        column: of the table.
        unknown: its categories that the encoder does not know.
        others: what the encoder knows, and is none of them.
        what: it is, in words.
    """
    meant = {str(each).strip().casefold(): each for each in others}
    found = {each: meant[word] for each in unknown if (word := str(each).casefold()) in meant}
    nothing = sorted(unknown & MISSING_WORDS) if any(map(_is_nothing, others)) else []
    if found or nothing:
        raise BadTeacher(
            f"the {what} knows categories of column {column.name} as something else",
            found=", ".join(map(repr, [*list(found)[:SHOWN], *nothing])),
            expected=", ".join([*map(repr, list(found.values())[:SHOWN]), *["nothing"] * bool(nothing)]),
            do="fit it on the column as the table has it, without spaces around"
            + (f"; or missing = {nothing} in the [[dataset]]".replace("'", '"') if nothing else ""),
        )


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _categories(estimator: Any, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the columns that an encoder within knows by name, each with its categories."""
    transformers = [part for part in _parts(estimator) if hasattr(part, "transformers_")]
    for _, transformer, columns in (each for part in transformers for each in part.transformers_):
        own = [columns] if isinstance(columns, str) else list(columns) if hasattr(columns, "__iter__") else []
        if not all(isinstance(name, str) and name in names for name in own):
            continue  # by place, or of an estimator within
        for part in _parts(transformer):
            if len(categories := getattr(part, "categories_", ())) == len(own):
                yield from zip(own, categories, strict=True)


def _parts(estimator: Any) -> list[Any]:
    """Return an estimator, and those that a pipeline is made of."""
    steps = [step for _, step in getattr(estimator, "steps", ())]
    return [estimator, *(part for step in steps for part in _parts(step))]
