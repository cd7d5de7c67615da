"""A text a row, at its own length: with one class, or none where its answer is a vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from storage.datasets.arrow import class_label
from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Recorded, Unreadable, number_of
from storage.datasets.text.files import TextFiles
from storage.datasets.text.reading.opening import kind_of, size_of
from storage.datasets.text.reading.rows import Column, Columns, Row
from storage.datasets.text.reading.tables import rows_of
from storage.datasets.text.reading.windows import Window
from storage.datasets.text.tokenising import batches_of, in_pieces
from storage.digests import unit_interval
from storage.errors import BadRequest, MissingSource
from storage.language.tokenizer import Around, around, encoder
from storage.tasks import TASKS
from storage.tasks.text_classification import TextClassification

KEPT_FILES = 2  # that are being read, in each process
FEW_ROWS = 10  # of a file; from here on, a label that its first line alone has is taken for the name of a column

_Found = tuple[str, Row | Unreadable]  # where a row is, and the row
Names = Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, str], Field(min_length=1)]


class LabelledTextSource(TextFiles):
    """Rows of a table, each a text of up to `length` tokens, with one class or none.

    Attributes:
        path: a `.csv`, `.tsv`, `.jsonl` or `.parquet` file, or a folder, to any depth, of such files taken by
            name; all but Parquet compressed too. Or a `.txt` file, whose lines are texts: column 0.
        task: what is asked of a row, its class or a `vector`; a `label` says so too.
        column: of text, by name, or in a table without names by number from 0; of several, the texts are joined.
        joined_by: what comes between them.
        label: column of classes; a row may have none. Without it the dataset is unlabelled.
        classes: the names, each as it is written in the column; or what is written there = name, in the order that the
            classes are to have. By default what is found in the column, sorted, whole numbers as numbers.
        length: tokens of a row at most; what is longer is cut, and the build says of how many rows.
        add_special_tokens: whether a row has what the tokenizer's own template puts around a text, such as [CLS] and
            [SEP], within its `length`: models that were trained so expect it.
        header: of CSV and TSV, whether the first line names the columns; by default if a column is given by name.
        quotes: of CSV and TSV, whether quotation marks may hold commas and line ends; by default in CSV.
    """

    kind: Literal["text"]
    task: Literal["text_classification", "vector"] = TextClassification.name
    column: Column | Annotated[list[Column], Field(min_length=1)]
    joined_by: str = " "
    label: Column | None = None
    classes: Names | None = None
    length: Annotated[int, Field(ge=1, le=2**20)]
    add_special_tokens: bool = False
    header: bool | None = None
    quotes: bool | None = None

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".jsonl", ".parquet", ".tsv")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        columns = [column for column in (*self._texts, self.label) if column is not None]
        if any(isinstance(column, int) and column < 0 for column in columns):
            raise ValueError("columns are numbered from 0")
        if self.header is False and any(isinstance(column, str) for column in columns):
            raise ValueError("without a `header` columns have no names: give their numbers, from 0")
        if self.header is False and (self.where is not None or self.domain is not None):
            raise ValueError("`where` and `domain` go by names of columns, which a table without a `header` has not")
        if not TASKS[self.task].has_classes and (self.label is not None or self.classes is not None):
            raise ValueError('task = "vector" asks for no class: leave out `label` and `classes`')
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
        keys = ("task", "joined_by", "label", "length", "part", "quotes")
        value = self.model_dump(mode="json")
        # said where it is not as it always was
        wrapped = {"add_special_tokens": True} if self.add_special_tokens else {}
        return (
            super().content()
            | wrapped
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
            rows.append((self.file_of(path), *LocalFile.of(path), self._told(path).rows if known is None else known))
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def class_names(self) -> list[str]:
        if self.classes is not None or self.label is None:
            return list(self._by_label.values())
        return list(self._written)

    def notes(self) -> list[str]:
        return [*super().notes(), *self._unnamed()]

    def _unnamed(self) -> list[str]:
        """Return a note on classes that are called by their numbers, though the file has their names."""
        parquet = [path for path in self.paths() if kind_of(path) == ".parquet"]
        if not parquet or self._by_label or not isinstance(self.label, str):
            return []
        names = class_label(pq.read_schema(parquet[0]), self.label)
        return [
            f"classes are called by their numbers, which {parquet[0].name} names: {', '.join(names[:8])}"
            f'{", …" * (len(names) > 8)}; kind = "hf_folder" takes the names'
        ] * bool(names)

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        path = self.at(file)
        window = _window(type(self), self.model_dump_json(), path, LocalFile.of(path)).rows(position, rows)
        numbers = {label: number for number, label in enumerate(self._by_label or self._written)}
        for i, (where, tokens, label, remarks) in enumerate(self._tokenise(window), start=position):
            number = number_of(label, numbers, where, self.name)
            yield RawSample(self.row_id(file, i, where), tokens, number, remarks)

    def row_id(self, file: str, number: int, where: str) -> str:
        """Return the permanent id of a row by its file, its number there, and where that is."""
        return f"{file}:{number}"

    def text_bytes(self, path: Path) -> int:
        """Return about how many bytes of text a file has."""
        return size_of(path)

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        """Return the first `length` tokens; the payload has them all."""
        assert isinstance(payload, np.ndarray)
        if self.add_special_tokens and len(payload) > self.length:
            own = slice(len(self._around.before), len(payload) - len(self._around.behind))
            return self._around.put(payload[own], self.length)
        return payload[: self.length]

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        source = super().prepared(tokenizer, recorded)
        if self.add_special_tokens and not 0 < (added := source._around.num_tokens) < self.length:  # noqa: SLF001
            raise BadRequest(
                f"dataset {self.name} cannot have special tokens around its texts",
                found="a tokenizer whose template adds none" if not added else f"length = {self.length}",
                expected="a tokenizer.json with a template that adds some" if not added else f"more than {added}",
                do="leave add_special_tokens out" if not added else "a larger length",
            )
        return source

    @property
    def _around(self) -> Around:
        return around(self.bound.data)

    def sample_texts(self, most: int) -> Iterator[str]:
        paths = self.paths()
        share = most / max(1, sum(map(self.text_bytes, paths)))
        for path in paths:
            for where, row in self._rows(path):
                if isinstance(row, Row) and (share >= 1 or unit_interval("sample", self.seed, where) < share):
                    yield self.joined_by.join(row.texts)

    @property
    def _texts(self) -> Sequence[Column]:
        return self.column if isinstance(self.column, list) else (self.column,)

    @property
    def _columns(self) -> Columns:
        named = any(isinstance(column, str) for column in (*self._texts, self.label, self.domain))
        named |= self.where is not None
        header = named if self.header is None else self.header
        return Columns(tuple(self._texts), self.label, header, self.quotes, self.rows_where)

    @property
    def _by_label(self) -> dict[str, str]:
        """The names by what is written in the column; none if the job gives none."""
        return self.classes if isinstance(self.classes, dict) else {name: name for name in self.classes or ()}

    @property
    def _written(self) -> Sequence[str]:
        """What is written in the column of classes of all files, in order."""
        if self.label is None:
            return ()
        # of all its tables, or datasets of one would have other classes than each other
        found = {label for path in self.paths() for label in self.everywhere()._told(path).labels}  # noqa: SLF001
        numbers = all(label.removeprefix("-").isdecimal() for label in found)
        # by its text too: 1 and 01 are two classes
        return sorted(found, key=(lambda label: (int(label), label)) if numbers else None)

    def _told(self, path: Path) -> _Told:
        return _told(type(self), self.model_dump_json(), path, LocalFile.of(path))

    def _rows(self, path: Path) -> Iterator[_Found]:
        return rows_of(path, self._columns, self.part)

    def _look_through(self, path: Path) -> _Told:
        """Return what all rows of a file tell together. Raises MissingSource: none has what it must."""
        num_rows = 0
        labels: Counter[str | None] = Counter()
        first: str | None = None
        for _, row in self._rows(path):
            num_rows += 1
            if isinstance(row, Row):
                first = first if labels else row.label
                labels[row.label] += 1
        if self.label is not None and labels.total() == labels[None] > 0:
            raise MissingSource(
                f"{path} has no label in column {self.label}",
                found=f"{labels[None]} rows without one",
                do="name the column of classes: label = …; or leave it out and give `classes`, if there are none",
            )
        # a first line that names columns where none was told of would be a class of one row
        delimited = kind_of(path) in (".csv", ".tsv") and not self._columns.header
        from_the_top = delimited and self.part[0] == 0 and self.classes is None
        if from_the_top and first is not None and labels.total() >= FEW_ROWS and labels[first] == 1:
            raise MissingSource(
                f"the first line of {path} looks like the names of its columns",
                found=f"label {first!r}, which no other row has",
                expected="a class with several rows",
                do="header = true, if it is; else name the `classes`",
            )
        return _Told(num_rows, frozenset(label for label in labels if label is not None))

    def _tokenise(self, rows: Sequence[_Found]) -> Iterator[_Tokenised]:
        """Yield rows in tokens, uncut."""
        encode = encoder(self.bound.data, parse_special=self.parses_special)
        joined = [
            row if isinstance(row, Unreadable) else Row((self.joined_by.join(row.texts),), row.label) for _, row in rows
        ]
        for batch in batches_of(enumerate(joined)):
            texts = [row.texts[0] for _, row in batch if isinstance(row, Row)]
            spelled = iter(in_pieces([text for text in texts if text.strip()], encode))
            for i, row in batch:
                where = rows[i][0]
                # `spelled` has only the texts that have something in them, in order
                if isinstance(row, Unreadable):
                    yield _Tokenised(where, Unreadable(f"{where}: {row}"))
                elif not (text := row.texts[0]).strip():
                    yield _Tokenised(where, Unreadable(f"{where}: has no text"), row.label)
                else:
                    tokens = next(spelled)
                    tokens = self._around.put(tokens) if self.add_special_tokens and len(tokens) else tokens
                    nothing = Unreadable(f"{where}: has text of which the tokenizer makes nothing")
                    yield _Tokenised(where, tokens if len(tokens) else nothing, row.label, self.remarks_of(text))


class _Tokenised(NamedTuple):
    where: str
    tokens: np.ndarray | Unreadable
    label: str | None = None
    remarks: tuple[str, ...] = ()


@lru_cache(maxsize=KEPT_FILES)
def _window(kind: type[LabelledTextSource], options: str, path: Path, file: LocalFile) -> Window[_Found]:
    source = kind.model_validate_json(options)
    return Window(lambda: source._rows(path))  # noqa: SLF001 - of this module


class _Told(NamedTuple):
    rows: int
    labels: frozenset[str]


@lru_cache(maxsize=1024)  # small, and asked for the number of rows, then for the classes
def _told(kind: type[LabelledTextSource], options: str, path: Path, file: LocalFile) -> _Told:
    return kind.model_validate_json(options)._look_through(path)  # noqa: SLF001 - of this module
