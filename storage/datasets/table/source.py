"""A table as a dataset: a row is numbers and categories, its answer the class in another column, or numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

import polars as pl
from pydantic import Field, PrivateAttr, model_validator

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Recorded, Source, Unreadable, number_of
from storage.datasets.listing import lacking, list_files, passed_over
from storage.datasets.table.answers import MOST_CLASSES, check_labels, in_order, label_of, numbered, target_of
from storage.datasets.table.layout import Cell, Layout, NumberColumn
from storage.datasets.table.learning import Learned, Seen, Wanted, answers_told, joined, learn
from storage.datasets.table.reading import SUFFIXES, Dialect, names_of, num_rows, rows_of
from storage.datasets.text.reading.opening import compressed, kind_of
from storage.datasets.text.reading.rows import IN_COLUMNS
from storage.datasets.text.reading.windows import KEPT_SHARDS, Window
from storage.errors import BadRequest, MissingSource
from storage.format.stores.mirror import SourcePath
from storage.options import Name
from storage.tasks.regression import Regression

Names = Annotated[list[str], Field(min_length=1)]
UNSEEN_TOLD = "rows have a category of {} that was in none when its categories were learned: zeros there"
CELL_BYTES = 64  # of a short text in memory, with its place in a list
ROWS_PER_SHARD = 2048
INDEX = re.compile(r"(__index_level_\d+__)?")  # as pandas calls the number of a row in Parquet; in CSV it has no name


class TableSource(Source):
    """Rows of tables, by the names of their columns.

    Attributes:
        path: a `.csv`, `.tsv` or `.parquet` file, or a folder, to any depth, of such files taken by name; the first two
            compressed too. The order of columns is of no matter.
        numeric, categorical: columns that are taken, as numbers and as categories; by default all but the label and the
            id, each as what is written there.
        label: column of classes; a row may have none. Without it the dataset is unlabelled.
        target: column of the number that is to be told, or several, in place of classes; a row may have none.
        classes: the names, each as it is written in the column; or what is written there = name, in the order that the
            classes are to have. By default what is found in the column, sorted, whole numbers as numbers.
        id: column of permanent ids; by default the file and the number of the row.
        missing: what stands for nothing, besides an empty cell.
        delimiter: what is between fields of a text; by default a comma, of `.tsv` a tab.
        unseen: a row with a category that was in no row when the columns were learned is set aside, `refuse`, or has
            `zeros` in all places of that column.
        columns_of: a dataset of the cache, or one above in the job, whose columns these are: the same places, means and
            categories, and the same classes, by their names.
        rounded: columns of whole numbers that float32 cannot tell apart, and may round.
        most_categories: values that a column of categories has at most.
    """

    kind: Literal["table"]
    path: SourcePath
    numeric: Names | None = None
    categorical: Names | None = None
    label: str | None = None
    target: str | Names | None = None
    classes: Names | Annotated[dict[str, str], Field(min_length=1)] | None = None
    id: str | None = None
    missing: list[str] = Field(default=[])
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    unseen: Literal["refuse", "zeros"] = "refuse"
    columns_of: Name | None = None
    rounded: list[str] = Field(default=[])
    most_categories: Annotated[int, Field(ge=1, le=2**16)] = 256

    _promised: Mapping[str, Any] | None = PrivateAttr(default=None)
    _recorded: Recorded = PrivateAttr(default={})

    @model_validator(mode="after")
    def _agree(self) -> Self:
        taken = [*(self.numeric or ()), *(self.categorical or ())]
        if twice := sorted({name for name in taken if taken.count(name) > 1}):
            raise ValueError(f"`numeric` and `categorical` name {', '.join(twice)} twice")
        if {self.label, *self._targets} & {*taken}:
            raise ValueError(
                "`label` or `target` is one of the columns that are taken: a student would read its answer"
            )
        if self._targets and (self.label is not None or self.classes is not None):
            raise ValueError("`target` is numbers, `label` and `classes` are of classes: one of both is asked")
        said = [key for key in ("numeric", "categorical", "rounded") if getattr(self, key)]
        if self.columns_of is not None and said:
            raise ValueError(f"`columns_of` says which columns there are, so leave out {' and '.join(said)}")
        if self.columns_of == self.name:
            raise ValueError("`columns_of` is another dataset")
        if self.id is not None and self.id in (*taken, *self._targets):
            raise ValueError("`id` is one of the columns that are taken: a student would learn rows by heart")
        names = list(self.classes.values()) if isinstance(self.classes, dict) else self.classes or []
        if len(set(names)) < len(names):
            raise ValueError("`classes` names one class twice")
        return self

    @classmethod
    def like(cls, promise: Mapping[str, Any], path: Path) -> Self:
        """Return a table elsewhere, without labels, of which rows are made as one of such a promise was."""
        keys = {key: promise[key] for key in ("delimiter", "missing", "unseen") if promise.get(key) is not None}
        (kind,) = get_args(cls.model_fields["kind"].annotation)
        section = {"name": "inputs", "kind": kind, "path": str(path.absolute()), **keys}
        found, own = cls.model_validate(section), promise.get("id")
        if own is not None and found.has_column(own):
            found = cls.model_validate(section | {"id": own})
        return found.as_promised(promise)

    def has_column(self, name: str) -> bool:
        """Return whether all files have a column."""
        return all(name in names_of(path, self._dialect) for path in self.paths())

    def content(self) -> dict[str, Any]:
        return (
            super().content()
            | self._columns_promised()
            | {"label": self.label, "id": self.id, "delimiter": self.delimiter}
            | {"missing": sorted(self.missing), "unseen": self.unseen}
            | {"labels": list(self._by_label) or self._labels}
            | self._targets_promised()
        )

    def task_name(self) -> str:
        return Regression.name if self._targets else super().task_name()

    def as_promised(self, content: Mapping[str, Any]) -> Self:
        copy = self.model_copy()
        copy._promised = dict(content)  # noqa: SLF001 - its own
        return copy

    @property
    def like_dataset(self) -> str | None:
        return self.columns_of

    def as_other(self, content: Mapping[str, Any]) -> Self:
        if Layout.promised(content) is None:
            raise BadRequest(
                f"dataset {self.name} cannot have the columns of {self.columns_of}, which is no table",
                found=f'kind = "{content.get("kind")}"',
                do="leave `columns_of` out",
            )
        if told := [name for name in self._behind if name in content["order"]]:
            raise BadRequest(
                f"dataset {self.name} has its label, target or id in {told[0]}, which is one of the columns of "
                f"{self.columns_of}: a student would read its answer",
                found=f"columns {', '.join(content['order'])}",
                do=f"leave {told[0]} out of the columns of {self.columns_of}: numeric = …, categorical = …",
            )
        same = {key: content[key] for key in ("kind", "columns", "order", "normalise")} | {"unseen": self.unseen}
        if self.label is not None and content.get("label") is not None:
            same["labels"] = content["labels"]
        if self._targets and content.get("target") == self._targets:
            same |= {key: content[key] for key in ("target", "answers")}
        promised = self.as_promised(same)
        if self.label is None or self._by_label:
            return promised
        return self.as_promised(same | {"labels": promised.class_names()})  # its own too, behind those of the other

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        copy = self.model_copy()
        copy._recorded = recorded  # noqa: SLF001 - its own
        return copy

    def files(self) -> pl.DataFrame:
        rows = []
        for path in self.paths():
            now, known = LocalFile.of(path), self._recorded.get(self.file_of(path))
            counted = known.rows if known is not None and self._is_recorded(path) else num_rows(path)
            rows.append((self.file_of(path), *now, self._told(path).rows if counted is None else counted))
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def look_at(self, file: str) -> LocalFile:
        return LocalFile.of(self.at(file))

    def class_names(self) -> list[str]:
        if self._by_label:
            return list(self._by_label.values())
        if self._promised is None:
            return self._labels
        # of files that are as they were when they were counted, all classes are known
        new = [path for path in self.paths() if self.label is not None and not self._is_recorded(path)]
        found = {label for path in new for label in self._told(path).labels}
        return [*self._labels, *in_order(found - set(self._labels))]

    def _is_recorded(self, path: Path) -> bool:
        known = self._recorded.get(self.file_of(path))
        return known is not None and (known.size, known.version) == LocalFile.of(path)

    def known_input(self) -> tuple[tuple[int, ...], str]:
        return (self._layout.width,), "float32"

    def buffer_bytes(self) -> int:
        rows = KEPT_SHARDS * (self.rows_per_shard or ROWS_PER_SHARD)
        return rows * (len(self._layout.names) + len(self._behind)) * CELL_BYTES

    def notes(self) -> list[str]:
        others = self._left_out()
        left_out = [f"left out: column {', '.join(others[:8])}{' …' * (len(others) > 8)}"] if others else []
        learned = (*self._learned.notes, *answers_told(self._seen_targets)) if self._promised is None else ()
        return [*self.passed_over(), *learned, *left_out]

    def _left_out(self) -> list[str]:
        """Return the names of columns that are not taken, of new files too; what is told elsewhere is left out."""
        first, *others = self.paths()
        untold = self._promised is not None or self.numeric is not None or self.categorical is not None
        own = names_of(first, self._dialect)
        found = dict.fromkeys(name for name in own if untold or INDEX.fullmatch(name))
        for path in others:
            if self.file_of(path) not in self._recorded:
                found |= dict.fromkeys(name for name in names_of(path, self._dialect) if name not in own)
        taken = {*self._layout.names, *self._behind}
        return [name or "without a name" for name in found if name not in taken]

    def passed_over(self) -> list[str]:
        """Return a note on what of a folder is none of its files."""
        return [*passed_over(self.path, compressed(SUFFIXES), deep=True), *lacking(self.path, self.paths())]

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        path, layout = self.at(file), self._layout
        wanted = (*layout.names, *self._behind)
        if kind_of(path) in IN_COLUMNS:
            found = list(rows_of(path, wanted, self._dialect, position, position + rows))
        else:
            found = _window(path, LocalFile.of(path), wanted, self._dialect).rows(position, rows)
        numbers = numbered(self._by_label or self._labels)
        for i, cells in enumerate(found, start=position):
            yield self._sample(f"{file}:{i}", cells, layout, numbers)

    def _sample(
        self, where: str, cells: list[Cell] | Unreadable, layout: Layout, numbers: Mapping[str, int]
    ) -> RawSample:
        if isinstance(cells, Unreadable):
            return RawSample(where, cells, None)
        behind = dict(zip(self._behind, cells[len(layout.columns) :], strict=True))
        label = None if self.label is None else label_of(behind[self.label])
        given = where if self.id is None else behind[self.id]
        if label is not None and label not in numbers and not self._by_label:
            numbers = numbered(self.class_names())  # of other data than those that were learned from
        number = number_of(label, numbers, where, self.name)
        if given is None:
            return RawSample(where, Unreadable(f"column {self.id} has no id"), number)
        try:
            row, unseen = layout.row(cells[: len(layout.columns)])
            target = target_of([behind[name] for name in self._targets], self._targets)
            return RawSample(str(given), row, number, tuple(map(UNSEEN_TOLD.format, unseen)), target)
        except Unreadable as reason:
            return RawSample(str(given), reason, number)

    @property
    def _dialect(self) -> Dialect:
        return Dialect(self.delimiter, frozenset(self.missing))

    @property
    def _targets(self) -> list[str]:
        return [self.target] if isinstance(self.target, str) else self.target or []

    @property
    def _behind(self) -> list[str]:
        """The columns that are read besides those of a row."""
        return [name for name in (self.label, *self._targets, self.id) if name is not None]

    def _targets_promised(self) -> dict[str, Any]:
        """Return which numbers are answers, their means and deviations, as they are promised; of classes nothing."""
        if not self._targets:
            return {}
        if self._promised is not None and self._promised.get("target") == self._targets:
            return {key: self._promised[key] for key in ("target", "answers")}
        seen = self._seen_targets
        learned = learn(seen, ["number"] * len(seen), self._targets, self.name)
        numbers = [column for column in learned.columns if isinstance(column, NumberColumn)]
        answers = {"mean": [each.mean for each in numbers], "std": [each.std for each in numbers]}
        return {"target": self._targets, "answers": answers}

    @property
    def _by_label(self) -> dict[str, str]:
        """The names by what is written in the column; none if the job gives none."""
        return self.classes if isinstance(self.classes, dict) else {name: name for name in self.classes or ()}

    @property
    def _labels(self) -> list[str]:
        """What is written in the column of classes, in the order of the classes."""
        if self._promised is not None:
            return list(self._promised.get("labels") or ())
        return in_order({label for path in self.paths() for label in self._told(path).labels})

    @property
    def _layout(self) -> Layout:
        promised = Layout.promised(self._promised)
        return promised or Layout(self._learned.columns, unseen=self.unseen == "zeros")

    @property
    def _seen_targets(self) -> list[Seen]:
        return joined([self._told(path).targets for path in self.paths()])

    @property
    def _learned(self) -> Learned:
        columns, wanted = self._wanted()
        seen = joined([self._told(path).seen for path in self.paths()])
        assert [each.name for each in seen] == list(columns)
        return learn(seen, wanted, self.rounded, self.name)

    def _columns_promised(self) -> dict[str, Any]:
        """Return the columns: those that were learned once, unless the job names others now."""
        promise = self._layout.promise()
        if self._promised is None or (self.numeric is None and self.categorical is None):
            return promise
        names, kinds = self._wanted()
        now = {name: kind for name, kind in zip(names, kinds, strict=True) if kind is not None}
        if now == {name: each["kind"] for name, each in promise["columns"].items()} and list(names) == promise["order"]:
            return promise
        return {"columns": {name: {"kind": kind} for name, kind in now.items()}, "order": list(names)}

    def _wanted(self) -> tuple[tuple[str, ...], tuple[Wanted, ...]]:
        """Return which columns are taken, and as what; None: as what is written there."""
        if self.numeric is None and self.categorical is None:
            names = names_of(self.paths()[0], self._dialect)
            others = tuple(name for name in names if name not in self._behind and not INDEX.fullmatch(name))
            return others, tuple([None] * len(others))
        taken: dict[str, Wanted] = dict.fromkeys(self.numeric or (), "number")
        taken |= dict.fromkeys(self.categorical or (), "category")
        return tuple(taken), tuple(taken.values())

    def _told(self, path: Path) -> _Told:
        # what is promised is not looked for elsewhere
        columns = self._wanted()[0] if self._promised is None else tuple(self._layout.names)
        return _told(type(self), self.model_dump_json(), path, LocalFile.of(path), columns)

    def _look_through(self, path: Path, columns: Sequence[str]) -> _Told:
        """Return what all rows of a file tell together. Raises MissingSource, BadRequest: a column is not there."""
        seen = tuple(Seen(name, self.most_categories) for name in columns)
        targets = tuple(Seen(name, 1) for name in self._targets)
        wanted = [*columns, *self._behind]
        typed, file = kind_of(path) in IN_COLUMNS, self.file_of(path)
        labels: dict[str, None] = {}
        rows = labelled = 0
        for i, cells in enumerate(rows_of(path, wanted, self._dialect)):
            rows += 1
            if isinstance(cells, Unreadable):
                continue
            train = self.split_of(f"{file}:{i}" if self.id is None else str(cells[-1])) == "train"
            first = len(columns) + (self.label is not None)
            for each, cell in zip((*seen, *targets), (*cells[: len(columns)], *cells[first:]), strict=False):
                each.add(cell, typed=typed, train=train)
            if self.label is not None and (label := label_of(cells[len(columns)])) is not None:
                labelled += 1
                if len(labels) <= MOST_CLASSES:
                    labels.setdefault(label)
        if self.label is not None:
            check_labels(path, self.label, labels, rows, labelled)
        return _Told(rows, seen, frozenset(labels), targets)

    def file_of(self, path: Path) -> str:
        """Return what a file is called in a plan."""
        return path.relative_to(self.path).as_posix() if self.path.is_dir() else path.name

    def at(self, file: str) -> Path:
        """Return where a file lies."""
        return self.path / file if self.path.is_dir() else self.path

    def paths(self) -> list[Path]:
        """Return the files, in order. Raises MissingSource: there are none."""
        if not self.path.is_dir():
            LocalFile.of(self.path)  # raises if there is none
            if kind_of(self.path) not in SUFFIXES:
                raise MissingSource(f"{self.path} is no table", found=self.path.suffix, expected=" or ".join(SUFFIXES))
            return [self.path]
        listing = list_files(self.path, compressed(SUFFIXES))
        if not listing.files:
            raise MissingSource(f"there is no table in {self.path}", expected=" or ".join(SUFFIXES))
        return list(listing.files)


class _Told(NamedTuple):
    rows: int
    seen: tuple[Seen, ...]
    labels: frozenset[str]
    targets: tuple[Seen, ...]


@lru_cache(maxsize=256)  # small, and asked for the number of rows, for the columns, and for the classes
def _told(kind: type[TableSource], options: str, path: Path, file: LocalFile, columns: tuple[str, ...]) -> _Told:
    return kind.model_validate_json(options)._look_through(path, columns)  # noqa: SLF001 - of this module


@lru_cache(maxsize=2)  # files that are being read, in each process
def _window(path: Path, file: LocalFile, wanted: tuple[str, ...], dialect: Dialect) -> Window[list[Cell] | Unreadable]:
    return Window(lambda: rows_of(path, wanted, dialect))
