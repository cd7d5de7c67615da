"""A table's columns as the inputs of an ONNX graph, each by its name: as skl2onnx and Keras write them.

Shapes: B rows of a batch, D places of a row.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.datasets.table import Layout
from storage.datasets.table.layout import Cell, NumberColumn
from storage.errors import BadTeacher
from teacher_cache.teachers.kinds.onnx_files import Port, listed

if TYPE_CHECKING:
    from teacher_cache.teachers.options import TeacherOptions

TEXT = np.dtype(object)  # of an input of texts


def column_of(port: Port) -> str:
    """Return the column that an input is named after.

    >>> column_of(Port("age", None)), column_of(Port("age:0", None))
    ('age', 'age')
    """
    return port.name.removesuffix(":0")  # as TensorFlow numbers what an operator gives


def goes_by_name(layout: Layout | None, ports: Sequence[Port]) -> bool:
    """Return whether a graph's inputs are columns of a table: it has several, or one that is called as a column."""
    return layout is not None and (len(ports) > 1 or column_of(ports[0]) in layout.names)


def check_inputs(ports: Sequence[Port], layout: Layout | None, path: Path, options: TeacherOptions) -> None:
    """Raise BadTeacher unless it is clear what each input of a graph is given.

    Args:
        ports: its inputs.
        layout: of the table that it is asked about; None: it is about something else.
        path: of the graph.
        options: of the teacher.
    """
    if layout is not None and goes_by_name(layout, ports):
        _check_columns(ports, layout, str(path))
        if options.input_names is not None:
            raise BadTeacher(
                f"the inputs of {path} are columns of the table, each found by its name",
                found=f"input_names = {options.input_names}, an order that nothing asks for".replace("'", '"'),
                do="leave `input_names` out",
            )
    elif len(ports) > 1 and options.input_names is None:
        raise BadTeacher(
            f"{path} has several inputs",
            found=listed([str(port) for port in ports]),
            expected="one, or `input_names` in the order of the dataset's; of a table one for each column, by its name",
            do=f"input_names = {[port.name for port in ports]}".replace("'", '"'),
        )


def _check_columns(ports: Sequence[Port], layout: Layout, what: str) -> None:
    if absent := [name for name in map(column_of, ports) if name not in layout.names]:
        near = [match for name in absent for match in difflib.get_close_matches(name, layout.names, 1)]
        raise BadTeacher(
            f"{what} has inputs that are no columns of the table",
            found=f"{', '.join(absent)}, of {listed([str(port) for port in ports])}",
            expected=f"one for each column by its name, of {', '.join(layout.names)}",
            do="name the inputs as the columns when it is converted; or the columns as the inputs, in the file"
            + (f"; is it {', '.join(near)}?" if near else ""),
        )
    for port in ports:
        if port.shape is not None and (len(port.shape) not in (1, 2) or port.shape[1:] not in [(), (1,)]):
            if len(port.shape) == 2 and isinstance(port.shape[1], str):  # an axis that may be of any size
                continue
            raise BadTeacher(
                f"{what} takes several numbers where the table has one column",
                found=str(port),
                expected="an input for each column, (rows, 1) or (rows)",
                do="convert it with an input for each column",
            )


class PortsByName:
    """Makes what a graph is given of rows of a table, an array for each of its inputs.

    Args:
        layout: of the table.
        ports: the graph's inputs.
        dtypes: of them.
        what: the graph is, in words.

    Raises:
        BadTeacher: an input is no column, or takes several numbers.
    """

    def __init__(self, layout: Layout, ports: Sequence[Port], dtypes: Sequence[np.dtype[Any]], what: str):
        self.layout, self._ports, self._dtypes, self._what = layout, list(ports), list(dtypes), what
        _check_columns(ports, layout, what)

    def arrays(self, rows_BD: np.ndarray) -> list[np.ndarray]:
        """Return the inputs of some rows. Raises BadTeacher: a column has what its input cannot be given."""
        cells = self.layout.table(rows_BD)
        return [
            self._array(cells[column_of(port)], port, dtype)
            for port, dtype in zip(self._ports, self._dtypes, strict=True)
        ]

    def _array(self, cells: Sequence[Cell], port: Port, dtype: np.dtype[Any]) -> np.ndarray:
        if dtype == TEXT:
            self._check_written(port)
            values_B = np.array(["" if cell is None else str(cell) for cell in cells], object)
        else:
            values_B = self._numbers(cells, port, dtype)
        return values_B if port.shape is not None and len(port.shape) == 1 else values_B[:, None]

    def _check_written(self, port: Port) -> None:
        """Raise BadTeacher if texts are wanted of a column of numbers: 7 would be given as 7.0, which nobody wrote."""
        name = column_of(port)
        if any(isinstance(column, NumberColumn) for column in self.layout.columns if column.name == name):
            raise BadTeacher(
                f"{self._what} takes texts where the table has numbers",
                found=f"column {name}, which is taken as numbers",
                expected=f"{port}, of texts as they are written",
                do=f'categorical = ["{name}"] in the [[dataset]], with the other columns',
            )

    def _numbers(self, cells: Sequence[Cell], port: Port, dtype: np.dtype[Any]) -> np.ndarray:
        """Return a column's cells as an input of numbers, (B,). Raises BadTeacher: they would be others there."""
        texts = [cell for cell in cells if isinstance(cell, str)]
        if texts:
            raise BadTeacher(
                f"{self._what} takes numbers where the table has texts",
                found=f"{texts[0]!r} in column {column_of(port)}",
                expected=f"{port} of {dtype}",
                do="a graph whose input is of texts; or the column as numbers, in the file",
            )
        values_B = np.array([math.nan if cell is None else float(cell) for cell in cells], np.float64)
        if dtype.kind in "iub":
            whole = np.isfinite(values_B) & (values_B == np.rint(values_B))
            if not whole.all():
                odd = values_B[~whole][0]
                raise BadTeacher(
                    f"{self._what} takes whole numbers, and column {column_of(port)} has others",
                    found="rows that have nothing there" if math.isnan(odd) else f"{odd:g}",
                    expected=f"{port} of {dtype}",
                    do="a graph whose input is float: there, nothing is NaN",
                )
        with np.errstate(over="ignore"):
            given_B = values_B.astype(dtype)
        # integers wrap around, a boolean has all but 0 as 1, half precision has no more than 65504
        kept_B = np.isfinite(given_B) if dtype.kind == "f" else given_B == values_B
        if (lost_B := np.isfinite(values_B) & ~kept_B).any():
            raise BadTeacher(
                f"{self._what}: column {column_of(port)} has a number that it has no room for",
                found=f"{values_B[lost_B][0]:g}",
                expected=f"{port} of {dtype}",
                do="a graph whose input is of a wider type",
            )
        return given_B


__all__ = ["TEXT", "PortsByName", "check_inputs", "goes_by_name"]
