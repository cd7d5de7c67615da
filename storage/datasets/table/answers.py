"""Answers of a row of a table, by what is written there: a class, or numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from storage.datasets.table.layout import NUMBER, Cell, number_of
from storage.errors import BadRequest, MissingSource

MOST_CLASSES = 10_000  # of a column of labels, of which as many are kept


def target_of(cells: Sequence[Cell], names: Sequence[str]) -> tuple[float, ...] | None:
    """Return the numbers that are a row's answer; None: it has none. Raises Unreadable: one is none."""
    if not names or None in cells:
        return None
    return tuple(number_of(name, cell) for name, cell in zip(names, cells, strict=True))


def label_of(cell: Cell) -> str | None:
    """Return a class as a text, as a reader of tables and scikit-learn have it; None: there is none.

    >>> label_of(True), label_of(2), label_of(2.0), label_of(" yes ")
    ('True', '2', '2', 'yes')
    """
    if isinstance(cell, float) and cell.is_integer():  # whole numbers of a column that lacks some
        return str(int(cell))
    return None if cell is None else str(cell).strip()


def in_order(labels: set[str]) -> list[str]:
    """Return names of classes in order: whole numbers as numbers, others as texts."""
    numbers = all(label.removeprefix("-").isdecimal() for label in labels)
    return sorted(labels, key=(lambda label: (int(label), label)) if numbers else None)


def numbered(labels: Iterable[str]) -> dict[str, int]:
    """Return the number of each class, by its name."""
    return {label: number for number, label in enumerate(labels)}


def check_labels(path: Path, column: str, labels: Mapping[str, None], rows: int, labelled: int) -> None:
    """Raise MissingSource or BadRequest unless a column of a file holds classes."""
    if rows and not labelled:
        raise MissingSource(
            f"{path} has no label in column {column}",
            found=f"{rows} rows without one",
            do="name the column of classes: label = …; or leave it out and give `classes`, if there are none",
        )
    numbers = [label for label in labels if NUMBER.fullmatch(label)]
    if len(labels) > MOST_CLASSES or any(not float(label).is_integer() for label in numbers):
        raise BadRequest(
            f"column {column} of {path} holds no classes",
            found=f"{len(labels):,} different labels, such as {', '.join(list(labels)[:4])}",
            expected=f"at most {MOST_CLASSES:,} names of classes",
            do=f'target = "{column}", if it is a number that is to be told',
        )
