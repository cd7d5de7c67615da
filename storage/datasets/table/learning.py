"""What the columns of a table are, and what is in them: one pass over its rows, in bounded memory, once.

What is learned is a promise from then on: neither means nor categories change when the table grows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from storage.datasets.table.layout import NUMBER, CategoryColumn, Cell, NumberColumn, is_exact
from storage.errors import BadRequest

INTEGER = re.compile(r"0|-?[1-9]\d*")  # 01 is a text: a code, such as that of a town
AMOUNT = re.compile(  # a number as people write it: 1,200 and 1.234,50, 1,5, 12 %, $5
    r"[+-]?[$€£¥]?\s?(\d{1,3}([,.'\u2019\s]\d{3})+([.,]\d+)?|\d+,\d+|\d+(\.\d+)?)\s?[%$€£¥]?"
)
FEW_ROWS = 20  # from here on a text of its own in every row is taken for a name, not a category
# what pandas reads as missing, and we as a text unless the job says so
MISSING_WORDS = frozenset({"NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A", "<NA>", "?", "-"})
SHOWN = 8

Wanted = Literal["number", "category"] | None
Type = Literal["text", "integer", "number", "boolean"]


@dataclass
class Seen:
    """What was seen of one column so far.

    Attributes:
        name: of it.
        most: values that are kept at most, and one more.
        cells, missing, numbers, integers, booleans: how many rows have something, nothing, a number, a whole number in
            its one spelling, or true or false.
        amounts: how many have a number as people write it, and no reader of tables.
        texts: how many have a text by the type that the file itself gives its column.
        values: what is written there, in the order in which it was met.
        no_number, inexact: the first cell that is none, and the first whole number that float32 has not.
        step: how much more each row has than the one before, where that is one number; None: it is not.
        num, mean, squares: of numbers in rows that are trained on: how many, their mean, sum of squares around it.
    """

    name: str
    most: int
    cells: int = 0
    missing: int = 0
    numbers: int = 0
    integers: int = 0
    booleans: int = 0
    amounts: int = 0
    texts: int = 0
    values: dict[str, None] = field(default_factory=dict)
    no_number: str | None = None
    inexact: str | None = None
    step: float | None = 0.0
    last: float | None = None
    num: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, cell: Cell, *, typed: bool, train: bool) -> None:
        """Take a cell in.

        Args:
            cell: as it is written.
            typed: whether the file says of which type its columns are, so that a text is no number.
            train: whether its row is trained on.
        """
        if cell is None:
            self.missing += 1
            return
        self.cells += 1
        text = str(cell).strip()
        if len(self.values) <= self.most:
            self.values.setdefault(text)
        self.texts += typed and isinstance(cell, str)
        self.booleans += text.casefold() in ("true", "false")
        self.integers += INTEGER.fullmatch(text) is not None
        if isinstance(cell, bool) or not NUMBER.fullmatch(text):
            self.no_number = self.no_number or text
            self.amounts += AMOUNT.fullmatch(text) is not None
            return
        self.numbers += 1
        value = float(text)
        if self.inexact is None and not is_exact(text):
            self.inexact = text
        step = None if self.last is None else value - self.last
        if step is not None and self.step is not None:
            self.step = step if self.step in (0.0, step) else None
        self.last = value
        if train:
            self.num += 1
            before = value - self.mean
            self.mean += before / self.num  # Welford 1962: no sum of squares, which loses all digits of large numbers
            self.squares += before * (value - self.mean)

    def joined(self, other: Seen) -> Seen:
        """Return what was seen of this column and, behind it, of the same one in another file."""
        counted = ("cells", "missing", "numbers", "integers", "booleans", "amounts", "texts", "num")
        sums = {name: getattr(self, name) + getattr(other, name) for name in counted}
        values = dict(self.values)
        for value in other.values:
            if len(values) <= self.most:
                values.setdefault(value)
        total, apart = sums["num"] or 1, other.mean - self.mean
        return Seen(
            self.name, self.most, **sums, values=values,
            no_number=self.no_number or other.no_number, inexact=self.inexact or other.inexact,
            step=self.step if self.step == other.step else None,
            mean=self.mean + apart * other.num / total,
            squares=self.squares + other.squares + apart**2 * self.num * other.num / total,
        )  # fmt: skip

    @property
    def type(self) -> Type:
        """Return the type of what is written there, as a reader of tables has it."""
        for name, many in (("boolean", self.booleans), ("integer", self.integers), ("number", self.numbers)):
            if many == self.cells and not self.texts and (name != "number" or not self._padded):
                return name  # type: ignore[return-value]
        return "text"

    @property
    def is_number(self) -> bool:
        """Return whether it is one, if nobody says what it is."""
        return self.numbers == self.cells and not self.texts and not self._padded

    @property
    def amounts_most(self) -> bool:
        """Return whether most are numbers, and some of them as people write them."""
        return self.amounts > 0 and self.numbers + self.amounts > self.cells / 2

    @property
    def _padded(self) -> bool:
        return any(re.fullmatch(r"-?0\d+", value) for value in self.values)

    def number(self, *, rounded: bool) -> NumberColumn:
        """Return it as numbers."""
        std = (self.squares / self.num) ** 0.5 if self.num else 0.0
        return NumberColumn(
            name=self.name, missing=self.missing > 0, rounded=rounded, mean=self.mean, std=std if std > 0 else 1.0
        )

    def category(self) -> CategoryColumn:
        """Return it as categories, numbers in their order and texts in theirs."""
        kind = self.type
        if kind == "boolean":
            written = sorted({value.capitalize() for value in self.values})
        elif kind == "text":
            written = sorted(self.values)
        else:  # int: float has not all whole numbers, and two codes would be one
            read = int if kind == "integer" else float
            written = [str(value) for value in sorted({read(value) for value in self.values})]
        return CategoryColumn(name=self.name, type=kind, values=tuple(written), missing=self.missing > 0)


def joined(files: Sequence[Sequence[Seen]]) -> list[Seen]:
    """Return what was seen of each column in all files."""
    seen, *others = files
    for other in others:
        seen = [one.joined(two) for one, two in zip(seen, other, strict=True)]
    return list(seen)


class Learned(NamedTuple):
    """Columns, and what a user should know of them."""

    columns: tuple[NumberColumn | CategoryColumn, ...]
    notes: tuple[str, ...]


def learn(seen: Sequence[Seen], wanted: Sequence[Wanted], rounded: Sequence[str], dataset: str) -> Learned:
    """Return what columns are promised to be.

    Args:
        seen: of each, over all rows.
        wanted: what the job says that each is; None: it says nothing.
        rounded: names of those whose whole numbers may be rounded.
        dataset: its name, for the message.

    Raises:
        BadRequest: some are not what they are to be, or nothing that a student could learn from; all are told.
    """
    faults: list[str] = []
    columns: list[NumberColumn | CategoryColumn] = []
    notes: list[str] = []
    for each, kind in zip(seen, wanted, strict=True):
        if not each.cells and kind is None:
            notes.append(f"left out: column {each.name}, which has nothing in any row")
            continue
        as_number = each.is_number if kind is None else kind == "number"
        fault = _fault(each, kind, as_number=as_number, rounded=rounded)
        if fault is not None:
            faults.append(fault)
            continue
        columns.append(each.number(rounded=each.name in rounded) if as_number else each.category())
        notes += _notes(each, as_number=as_number, told=kind is not None)
    if faults:
        raise BadRequest(
            f"columns of dataset {dataset} cannot be taken as they are",
            found="\n".join(faults[:SHOWN]) + (f"\nand {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""),
            expected="numbers, or categories of which there are few",
            do='name what is wanted, numeric = ["…"] and categorical = ["…"]: other columns are left out then',
        )
    if not columns:
        raise BadRequest(f"dataset {dataset} has no column to learn from", expected="one besides its label")
    return Learned(tuple(columns), (_told(columns), *notes))


def _fault(each: Seen, kind: Wanted, *, as_number: bool, rounded: Sequence[str]) -> str | None:
    """Return why a column cannot be taken; None: it can."""
    word, fault = each.no_number, None
    named = f'id = "{each.name}", if it names the row'
    if not each.cells:
        fault = "nothing in any row"
    elif word is not None and AMOUNT.fullmatch(word) and (as_number or (kind is None and each.amounts_most)):
        fault = f"{word!r}, a number as people write it: in the file it must be as 1200 or 1.5" + (
            f'; or categorical = ["{each.name}"], if it is a code' if kind is None else ""
        )
    elif as_number and word is not None:
        fault = f'{word!r}, which is no number; if that means that there is none, missing = ["{word}"]'
    elif as_number and each.inexact is not None and each.name not in rounded:
        fault = (
            f"{each.inexact}, and float32 has each whole number up to 16,777,216 alone: leave it out; "
            f'or categorical = ["{each.name}"], if it is a code; or rounded = ["{each.name}"]'
        )
    elif not as_number and len(each.values) > each.most:
        fault = f"more than most_categories = {each.most} texts, such as {_some(each)}" + (
            f": leave it out; or {named}" if kind is None else ""
        )
    elif not as_number and kind is None and len(each.values) == each.cells >= FEW_ROWS:
        fault = f"another text in every row, such as {_some(each)}: leave it out; or {named}"
    elif not as_number and kind is None and each.numbers > each.cells / 2 and word is not None:
        fault = f'numbers, and {word!r}; if that means that there is none, missing = ["{word}"]'
    return None if fault is None else f"{each.name}: {fault}"


def _some(each: Seen) -> str:
    return ", ".join(map(repr, list(each.values)[:3]))


def _notes(each: Seen, *, as_number: bool, told: bool) -> list[str]:
    rows = each.cells + each.missing
    found = []
    if each.missing:
        found.append(
            f"column {each.name} has nothing in {each.missing:,} of {rows:,} rows, which has a place of its own"
        )
    if len(each.values) == 1:
        found.append(f"column {each.name} has {_some(each)} in every row, which tells nothing")
    if as_number and not told and each.step not in (None, 0.0) and rows >= FEW_ROWS and not each.missing:
        found.append(f"column {each.name} counts the rows: leave it out, if it is their number")
    words = sorted(MISSING_WORDS & each.values.keys())
    if words and not as_number:
        said = ", ".join(f'"{word}"' for word in words)
        found.append(f"column {each.name} has {said} as a category; if that means nothing, missing = [{said}]")
    return found


def answers_told(targets: Sequence[Seen]) -> list[str]:
    """Return what a user should know of the numbers that are to be told."""
    found = []
    for each in targets:
        if each.missing:
            rows = each.cells + each.missing
            found.append(f"target {each.name} has nothing in {each.missing:,} of {rows:,} rows, which have no answer")
        if len(each.values) == 1:
            found.append(f"target {each.name} is {_some(each)} in every row: there is nothing to tell")
    return found


def _told(columns: Sequence[NumberColumn | CategoryColumn]) -> str:
    """Return which columns were taken as what."""
    numbers = [each.name for each in columns if isinstance(each, NumberColumn)]
    categories = [f"{each.name} ({len(each.values)})" for each in columns if isinstance(each, CategoryColumn)]
    parts = [
        f"{len(names)} {word}: {_listed(names)}"
        for names, word in ((numbers, "of numbers"), (categories, "of categories"))
        if names
    ]
    return "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
