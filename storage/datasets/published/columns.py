"""Images in a column of a table and their labels in another, whatever file the table is in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from storage.datasets.arrow import NOT_LABELLED, class_label
from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Unreadable, classes_up_to, numbered
from storage.datasets.images import ImageSource
from storage.datasets.published.features import is_image
from storage.errors import MissingSource
from storage.format.stores.mirror import SourcePath

UNLABELLED = f"samples with label {NOT_LABELLED}, which is no class to `datasets`, and so have none"


class TableFile(Protocol):
    """A file of a table."""

    @property
    def schema(self) -> pa.Schema:
        """Return names and types of its columns."""

    @property
    def num_rows(self) -> int:
        """Return its rows."""

    @property
    def ends(self) -> Sequence[int]:
        """Return the row behind each run of them that costs little more than its first."""

    @property
    def held_bytes(self) -> int:
        """Return what reading holds at once besides the samples."""

    def batches(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[pa.Table | pa.RecordBatch]:
        """Yield some columns of the rows [start, stop), a bounded part of them at a time."""


class ColumnImages(ImageSource):
    """Images as `{bytes, path}` structs or plain binary.

    Attributes:
        path: where the files are.
        image: column of images.
        label: column of integer labels; "" for a dataset without labels.
        id: column of permanent ids; by default `<file>:<row in the file>`.
        classes: names in the teacher's order; by default those in the first file's metadata, else the numbers up to the
            largest label. A file that names its classes is read by those names, whatever their order in it.
    """

    path: SourcePath
    image: str = "image"
    label: str = "label"
    id: str | None = None

    def paths(self) -> list[Path]:
        """Return the files, in order. Raises MissingSource: there are none."""
        raise NotImplementedError

    def at(self, file: str) -> Path:
        """Return where a file lies."""
        raise NotImplementedError

    def file_of(self, path: Path) -> str:
        """Return what a file is called in a plan."""
        raise NotImplementedError

    def open_table(self, path: Path) -> TableFile:
        """Return a file. Raises MissingSource: it cannot be read."""
        raise NotImplementedError

    def passed_over(self) -> list[str]:
        """Return a note on what lies beside the files."""
        raise NotImplementedError

    def advice(self, schema: pa.Schema) -> str:
        """Return what to write if a column is not there."""
        return "name the columns in the job: image = …, label = …"

    def content(self) -> dict[str, Any]:
        return super().content() | {"image": self.image, "label": self.label, "id": self.id}

    def files(self) -> pl.DataFrame:
        rows = [(self.file_of(p), *LocalFile.of(p), self._open(p).num_rows) for p in self.paths()]
        self._check_names()
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def look_at(self, file: str) -> LocalFile:
        return LocalFile.of(self.at(file))

    def class_names(self) -> list[str]:
        if self.classes is not None:
            return self.classes  # also of an unlabelled dataset, for its teachers
        if not self.label:
            return []
        paths = self.paths()
        if named := self._names(paths[0]):
            return named
        largest, path = max((self._largest_label(path), path) for path in paths)
        return classes_up_to(largest, str(path))

    def notes(self) -> list[str]:
        # the names of a schema were folders once
        names = self._names(self.paths()[0]) if self.classes is None else []
        return [*self.passed_over(), *([note] if names and (note := numbered(names)) else [])]

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        path = self.at(file)
        renumbered = self._renumbered(path)
        for batch in self._open(path).batches(position, position + rows, self._columns):
            yield from self._samples(batch, file, position, renumbered)
            position += batch.num_rows

    def runs(self, file: str, position: int, rows: int) -> list[int]:
        ends = self._open(self.at(file)).ends
        cuts = [position, *(end for end in ends if position < end < position + rows), position + rows]
        return [stop - start for start, stop in pairwise(cuts)]

    def buffer_bytes(self) -> int:
        return max(self._open(path).held_bytes for path in self.paths())

    def _samples(
        self, table: pa.Table | pa.RecordBatch, file: str, position: int, renumbered: Mapping[int, int | None]
    ) -> Iterator[RawSample]:
        images = table[self.image]
        try:
            payloads = (pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images).to_pylist()
            labels = table[self.label].to_pylist() if self.label else [None] * len(payloads)
            ids: list[Any] = table[self.id].to_pylist() if self.id else [None] * len(payloads)
        except UnicodeDecodeError as error:
            raise MissingSource(
                f"{self.at(file)} is damaged: a text in it is none",
                found=f"{error.reason}, in rows {position} to {position + len(images) - 1}",
                expected="UTF-8",
                do="fetch or write the file again",
            ) from None
        ids = [f"{file}:{position + i}" if sample_id is None else str(sample_id) for i, sample_id in enumerate(ids)]
        for sample_id, payload, label in zip(ids, payloads, labels, strict=True):
            number = None if label is None else renumbered.get(label, label)  # what has no name is judged as a number
            remarks = (UNLABELLED,) if number is None and label is not None else ()
            yield RawSample(sample_id, payload if payload else Unreadable("no image bytes"), number, remarks)

    @property
    def _columns(self) -> tuple[str, ...]:
        return tuple(name for name in (self.image, self.label, self.id) if name)

    def _largest_label(self, path: Path) -> int:
        """Return the largest label of a file; 0 if all are null, or there is no row."""
        table = self._open(path)
        batches = table.batches(0, table.num_rows, (self.label,))
        return max((pc.max(batch[self.label]).as_py() or 0 for batch in batches), default=0)

    def _names(self, path: Path) -> list[str]:
        """Return the names of classes that a file carries in the order of its labels; none if they are but numbers."""
        names = _names_in_schema(self._open(path).schema, self.label) if self.label else []
        return [] if names == [str(number) for number in range(len(names))] else names

    def _renumbered(self, path: Path) -> dict[int, int | None]:
        """Return a file's labels → the dataset's, by name."""
        # of ClassLabel, whatever its names
        none = {NOT_LABELLED: None} if self.label and class_label(self._open(path).schema, self.label) else {}
        if not (names := self._names(path)):
            return {**none}
        places = {name: place for place, name in enumerate(self.class_names())}  # once: it opens a file
        return {**none, **{number: places[name] for number, name in enumerate(names)}}

    def _check_names(self) -> None:
        """Check that all files mean the same by a label (invariant 13). Raises MissingSource, with both lists."""
        if not self.label:
            return
        classes, paths = self.class_names(), self.paths()
        names = {path: self._names(path) for path in paths}
        nameless = [path for path in paths if not names[path]]
        if nameless and len(nameless) < len(paths):
            named = next(path for path in paths if names[path])
            raise MissingSource(
                f"{nameless[0].name} does not say what its labels mean, and {named.name} does",
                found=f"no class names in the metadata of {len(nameless)} of {len(paths)} files",
                expected=f"{', '.join(names[named])}  ({named.name})",
                do="write the names into all files, or into none and give `classes` in the job",
            )
        for path in paths:
            if unknown := [name for name in names[path] if name not in classes]:
                listed = ", ".join(f'"{name}"' for name in dict.fromkeys([*classes, *names[path]]))
                raise MissingSource(
                    f"{path.name} names other classes than {'the job' if self.classes else paths[0].name}",
                    found=f"{', '.join(names[path])}  ({path.name}; unknown: {', '.join(unknown)})",
                    expected=f"some of {', '.join(classes)}, in any order",
                    do=f"name all classes in the job, in the teacher's order: classes = [{listed}]",
                )

    def _open(self, path: Path) -> TableFile:
        """Return a file whose columns are there and of the right kind. Raises MissingSource."""
        table = self.open_table(path)
        schema = table.schema
        for column in self._columns:
            if column not in schema.names:
                raise MissingSource(
                    f"{path} has no column {column}", found=", ".join(schema.names), do=self.advice(schema)
                )
        if not is_image(schema.field(self.image).type):
            found, expected = schema.field(self.image), "binary, or a struct with a binary field `bytes`"
            raise MissingSource(
                f"column {self.image} of {path} holds no images", found=str(found.type), expected=expected
            )
        if self.label and not pa.types.is_integer(schema.field(self.label).type):
            found = schema.field(self.label)
            raise MissingSource(
                f"column {self.label} of {path} holds no labels", found=str(found.type), expected="integers"
            )
        return table


def _names_in_schema(schema: pa.Schema, label: str) -> list[str]:
    """Return class names kept in the schema's metadata: Hugging Face's `ClassLabel`, or a plain `classes` list."""
    metadata = schema.metadata or {}
    if b"huggingface" in metadata:  # or another tool's use of that key
        return class_label(schema, label)
    return metadata[b"classes"].decode().split(",") if b"classes" in metadata else []
