"""Text for classification: a text a row, at its own length, with one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Unreadable
from storage.datasets.text.files import KEPT_FILES, TextFiles
from storage.datasets.text.rows import Column, Columns, Row, rows_of
from storage.errors import LabelOutOfRange, MissingSource
from storage.tasks.text_classification import TextClassification
from storage.tokenizer import encoder

FEW_ROWS = 10  # of a file; from here on, a label that its first line alone has is taken for the name of a column

Names = Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, str], Field(min_length=1)]


class LabelledTextSource(TextFiles):
    """Rows of a table, each a text of up to `length` tokens, with one class or none.

    Attributes:
        path: a `.csv`, `.tsv`, `.jsonl` or `.parquet` file, or a folder of such files taken by name.
        task: what is asked of a row; a `label` says so too.
        column: of text, by name, or in a table without names by number from 0; of several, the texts are joined.
        joined_by: what comes between them.
        label: column of classes; a row may have none. Without it the dataset is unlabelled.
        classes: the names, each as it is written in the column; or what is written there = name, in the order that the
            classes are to have. By default what is found in the column, sorted, whole numbers as numbers.
        length: tokens of a row at most; what is longer is cut, and the build says of how many rows.
        header: of CSV and TSV, whether the first line names the columns; by default if a column is given by name.
        quotes: of CSV and TSV, whether quotation marks may hold commas and line ends; by default in CSV.
    """

    kind: Literal["text"]
    task: Literal["text_classification"] = TextClassification.name
    column: Column | Annotated[list[Column], Field(min_length=1)]
    joined_by: str = " "
    label: Column | None = None
    classes: Names | None = None
    length: Annotated[int, Field(ge=1, le=2**20)]
    header: bool | None = None
    quotes: bool | None = None

    suffixes = (".csv", ".jsonl", ".parquet", ".tsv")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        columns = [column for column in (*self._texts, self.label) if column is not None]
        if any(isinstance(column, int) and column < 0 for column in columns):
            raise ValueError("columns are numbered from 0")
        if self.header is False and any(isinstance(column, str) for column in columns):
            raise ValueError("without a `header` columns have no names: give their numbers, from 0")
        if self.label in self._texts:
            raise ValueError("`label` is one of the columns of text: a student would read its answer")
        names = list((self.classes or {}).values()) if isinstance(self.classes, dict) else self.classes or []
        if len(set(names)) < len(names):
            raise ValueError("`classes` names one class twice")
        if wide := [label for label in self.classes or () if label != label.strip()]:
            told = ", ".join(f"{label!r} is found as {label.strip()!r}" for label in wide)
            raise ValueError(f"labels are read without spaces around them, so `classes` never match: {told}")
        return self

    def content(self) -> dict[str, Any]:
        keys = ("task", "joined_by", "label", "length", "part", "train_tokenizer", "quotes")
        value = self.model_dump(mode="json")
        return (
            super().content()
            | {key: value[key] for key in keys}
            # as they take effect: one column and a list of one mean the same
            | {"column": list(self._texts), "header": self._columns.header, "labels": list(self._by_label) or None}
        )

    def task_name(self) -> str:
        return self.task

    def longest_row(self) -> int:
        return self.length

    def files(self) -> pl.DataFrame:
        rows = []
        for path in self.paths():
            known = self.recorded_rows(path)
            rows.append((path.name, *LocalFile.of(path), len(self._rows(path)) if known is None else known))
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def class_names(self) -> list[str]:
        if self.classes is not None or self.label is None:
            return list(self._by_label.values())
        return list(self._written)

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        path = self.at(file)
        tokenised = _tokenised(self.model_dump_json(), self.bound.data, path, LocalFile.of(path))
        numbers = {label: number for number, label in enumerate(self._by_label or self._written)}
        for i in range(position, min(position + rows, len(tokenised))):
            where, tokens, label, remarks = tokenised[i]
            if label is not None and label not in numbers:
                raise LabelOutOfRange(
                    f"{where} of dataset {self.name} has a label that is no class",
                    found=repr(label),
                    expected=", ".join(map(repr, numbers)),
                    do="mend it; or name it in `classes`, as list of what is written there, or as { written = name }",
                )
            yield RawSample(f"{file}:{i}", tokens, None if label is None else numbers[label], remarks)

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        """Return the first `length` tokens; the payload has them all."""
        assert isinstance(payload, np.ndarray)
        return payload[: self.length]

    def readable_texts(self, path: Path) -> Iterator[str]:
        for _, row in self._rows(path):
            if isinstance(row, Row):
                yield self.joined_by.join(row.texts)

    @property
    def _texts(self) -> Sequence[Column]:
        return self.column if isinstance(self.column, list) else (self.column,)

    @property
    def _columns(self) -> Columns:
        named = any(isinstance(column, str) for column in (*self._texts, self.label))
        return Columns(tuple(self._texts), self.label, named if self.header is None else self.header, self.quotes)

    @property
    def _by_label(self) -> dict[str, str]:
        """The names by what is written in the column; none if the job gives none."""
        return self.classes if isinstance(self.classes, dict) else {name: name for name in self.classes or ()}

    @property
    def _written(self) -> Sequence[str]:
        """What is written in the column of classes of all files, in order."""
        if self.label is None:
            return ()
        options = self.model_dump_json()
        return _labels_found(options, tuple((path, LocalFile.of(path)) for path in self.paths()))

    def _rows(self, path: Path) -> Sequence[tuple[str, Row | Unreadable]]:
        """Return the rows of a file. Raises MissingSource: none has what it must."""
        rows = list(rows_of(path, self._columns, self.part))
        labels = [row.label for _, row in rows if isinstance(row, Row)]
        if self.label is not None and labels and not any(labels):
            raise MissingSource(
                f"{path} has no label in column {self.label}",
                found=f"{len(labels)} rows without one",
                do="name the column of classes: label = …; or leave it out and give `classes`, if there are none",
            )
        self._check_header(path, labels)
        return rows

    def _check_header(self, path: Path, labels: Sequence[str | None]) -> None:
        """Refuse a first line that names columns where none was told of: it would be a class of one row."""
        delimited = path.suffix.lower() in (".csv", ".tsv") and not self._columns.header
        from_the_top = delimited and self.part[0] == 0 and self.classes is None and len(labels) >= FEW_ROWS
        if from_the_top and labels[0] is not None and labels.count(labels[0]) == 1:
            raise MissingSource(
                f"the first line of {path} looks like the names of its columns",
                found=f"label {labels[0]!r}, which no other row has",
                expected="a class with several rows",
                do="header = true, if it is; else name the `classes`",
            )

    def _tokenise(self, path: Path) -> list[_Tokenised]:
        """Return the rows of a file, uncut."""
        rows = list(self._rows(path))
        joined = [row if isinstance(row, Unreadable) else self.joined_by.join(row.texts) for _, row in rows]
        encode = encoder(self.bound.data, parse_special=self.parses_special)
        spelled = iter(encode([text for text in joined if isinstance(text, str) and text.strip()]))
        found = []
        for (where, row), text in zip(rows, joined, strict=True):
            label = row.label if isinstance(row, Row) else None
            if isinstance(text, Unreadable):
                tokens: np.ndarray | Unreadable = Unreadable(f"{where}: {text}")
            # `spelled` has only the texts that have something in them, in order
            elif not text.strip():
                tokens = Unreadable(f"{where}: has no text")
            elif not len(tokens := next(spelled)):
                tokens = Unreadable(f"{where}: has text of which the tokenizer makes nothing")
            remarks = self.remarks_of(text) if isinstance(text, str) else ()
            found.append(_Tokenised(where, tokens, label, remarks))
        return found


class _Tokenised(NamedTuple):
    where: str
    tokens: np.ndarray | Unreadable
    label: str | None
    remarks: tuple[str, ...]


@lru_cache(maxsize=KEPT_FILES)
def _tokenised(options: str, tokenizer: bytes, path: Path, file: LocalFile) -> list[_Tokenised]:
    source = LabelledTextSource.model_validate_json(options).prepared(tokenizer, {})
    return source._tokenise(path)  # noqa: SLF001 - of this module


@lru_cache(maxsize=KEPT_FILES)
def _labels_found(options: str, files: tuple[tuple[Path, LocalFile], ...]) -> tuple[str, ...]:
    source = LabelledTextSource.model_validate_json(options)
    rows = (row for path, _ in files for _, row in source._rows(path))  # noqa: SLF001 - of this module
    found = {row.label for row in rows if isinstance(row, Row) and row.label is not None}
    numbers = all(label.removeprefix("-").isdecimal() for label in found)
    # by its text too: 1 and 01 are two classes
    return tuple(sorted(found, key=(lambda label: (int(label), label)) if numbers else None))
