"""Parquet files with a column of encoded images and one of labels: the layout of Hugging Face image datasets."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Unreadable, numbered
from storage.datasets.images import ImageSource
from storage.datasets.listing import list_files, passed_over
from storage.errors import MissingSource
from storage.options import JobPath

KEPT_ROW_GROUPS = 2  # decompressed, in each process
KEPT_BYTES = 256 * 2**20  # of a row group; one that is larger is read again for each shard
MOST_AT_ONCE = 1024  # rows, and bytes, that are decompressed at once of others
BATCH_BYTES = 32 * 2**20
BUFFER_BYTES = 2**16  # of a file: else the columns of a whole row group are read at once


class ParquetImagesSource(ImageSource):
    """Images as `{bytes, path}` structs or plain binary.

    Attributes:
        path: one file, or a folder of `*.parquet` files taken by name.
        image: column of images.
        label: column of integer labels; "" for a dataset without labels.
        id: column of permanent ids; by default `<file>:<row in the file>`.
        classes: names in the teacher's order; by default those in the first file's metadata, else the numbers up to the
            largest label. A file that names its classes is read by those names, whatever their order in it.
    """

    kind: Literal["parquet_images"]
    path: JobPath
    image: str = "image"
    label: str = "label"
    id: str | None = None

    def content(self) -> dict[str, Any]:
        return super().content() | {"image": self.image, "label": self.label, "id": self.id}

    def files(self) -> pl.DataFrame:
        rows = [(p.name, *LocalFile.of(p), self._open(p).metadata.num_rows) for p in self._paths()]
        self._check_names()
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def look_at(self, file: str) -> LocalFile:
        return LocalFile.of(self.path / file if self.path.is_dir() else self.path)

    def class_names(self) -> list[str]:
        if self.classes is not None:
            return self.classes  # also of an unlabelled dataset, for its teachers
        if not self.label:
            return []
        paths = self._paths()
        if named := self._names(paths[0]):
            return named
        columns = [_column(path, self.label) for path in paths]
        # None if all are null, or there is no row
        return [str(number) for number in range(max(pc.max(column).as_py() or 0 for column in columns) + 1)]

    def notes(self) -> list[str]:
        # the names of a schema were folders once
        names = self._names(self._paths()[0]) if self.classes is None else []
        return [*passed_over(self.path, (".parquet",)), *([note] if names and (note := numbered(names)) else [])]

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        path = self.path / file if self.path.is_dir() else self.path
        first = 0
        groups = self._open(path).metadata
        renumbered = self._renumbered(path)
        for number in range(groups.num_row_groups):
            stop = first + groups.row_group(number).num_rows
            begin, end = max(position, first), min(position + rows, stop)
            if begin < end:
                for table in self._tables(path, number, groups.row_group(number), (begin - first, end - first)):
                    yield from self._samples(table, file, begin, renumbered)
                    begin += len(table)
            first = stop

    def runs(self, file: str, position: int, rows: int) -> list[int]:
        """Return the row groups: each is decompressed whole."""
        groups = self._open(self.path / file if self.path.is_dir() else self.path).metadata
        ends = accumulate(groups.row_group(number).num_rows for number in range(groups.num_row_groups))
        cuts = [position, *(end for end in ends if position < end < position + rows), position + rows]
        return [stop - start for start, stop in pairwise(cuts)]

    def buffer_bytes(self) -> int:
        footers = [self._open(path).metadata for path in self._paths()]
        largest = max(f.row_group(i).total_byte_size for f in footers for i in range(f.num_row_groups))
        return KEPT_ROW_GROUPS * min(int(largest), KEPT_BYTES)

    def _tables(self, path: Path, number: int, group: pq.RowGroupMetaData, rows: tuple[int, int]) -> Iterator[pa.Table]:
        """Yield the rows [start, stop) of a row group, together or a few at a time."""
        start, stop = rows
        if group.total_byte_size <= KEPT_BYTES:
            yield _read_group(path, LocalFile.of(path).version, number, self._columns).slice(start, stop - start)
            return
        # Arrow's 32-bit offsets end at 2 GiB, and a struct of more is not read at once at all.
        size = max(1, min(MOST_AT_ONCE, BATCH_BYTES * group.num_rows // group.total_byte_size))
        place = 0
        with _reading(path), pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            for batch in file.iter_batches(size, row_groups=[number], columns=list(self._columns)):
                begin, end = max(0, start - place), min(batch.num_rows, stop - place)
                if begin < end:
                    yield pa.Table.from_batches([batch.slice(begin, end - begin)])
                place += batch.num_rows
                if place >= stop:
                    return

    def _samples(self, table: pa.Table, file: str, position: int, renumbered: Mapping[int, int]) -> Iterator[RawSample]:
        images = table[self.image]
        payloads = (pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images).to_pylist()
        labels = table[self.label].to_pylist() if self.label else [None] * len(payloads)
        ids: list[Any] = table[self.id].to_pylist() if self.id else [None] * len(payloads)
        ids = [f"{file}:{position + i}" if sample_id is None else str(sample_id) for i, sample_id in enumerate(ids)]
        for sample_id, payload, label in zip(ids, payloads, labels, strict=True):
            number = None if label is None else renumbered.get(label, label)  # what has no name is judged as a number
            yield RawSample(sample_id, payload if payload else Unreadable("no image bytes"), number)

    @property
    def _columns(self) -> tuple[str, ...]:
        return tuple(name for name in (self.image, self.label, self.id) if name)

    def _paths(self) -> list[Path]:
        if not self.path.is_dir():
            LocalFile.of(self.path)  # raises if there is none
            return [self.path]
        paths = list_files(self.path, (".parquet",), deep=False).files
        if not paths:
            raise MissingSource(f"{self.path} holds no *.parquet file")
        return list(paths)

    def _names(self, path: Path) -> list[str]:
        """Return the names of classes that a file carries in the order of its labels; none if they are but numbers."""
        names = _names_in_schema(self._open(path).schema_arrow, self.label) if self.label else []
        return [] if names == [str(number) for number in range(len(names))] else names

    def _renumbered(self, path: Path) -> dict[int, int]:
        """Return a file's labels → the dataset's, by name."""
        if not (names := self._names(path)):
            return {}
        places = {name: place for place, name in enumerate(self.class_names())}  # once: it opens a file
        return {number: places[name] for number, name in enumerate(names)}

    def _check_names(self) -> None:
        """Check that all files mean the same by a label (invariant 13). Raises MissingSource, with both lists."""
        if not self.label:
            return
        classes, paths = self.class_names(), self._paths()
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

    def _open(self, path: Path) -> pq.ParquetFile:
        """Return a file whose columns are there and of the right kind. Raises MissingSource."""
        with _reading(path):
            file = pq.ParquetFile(path)
        schema = file.schema_arrow
        for column in self._columns:
            if column not in schema.names:
                raise MissingSource(
                    f"{path} has no column {column}",
                    found=", ".join(schema.names),
                    do="name the columns in the job: image = …, label = …",
                )
        if not _holds_images(schema.field(self.image).type):
            found, expected = schema.field(self.image), "binary, or a struct with a binary field `bytes`"
            raise MissingSource(
                f"column {self.image} of {path} holds no images", found=str(found.type), expected=expected
            )
        if self.label and not pa.types.is_integer(schema.field(self.label).type):
            found = schema.field(self.label)
            raise MissingSource(
                f"column {self.label} of {path} holds no labels", found=str(found.type), expected="integers"
            )
        return file


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise MissingSource(f"cannot read {path} as Parquet", found=str(error)) from None


# Neighbouring shards share a row group, and each piece of work would decompress it again; by version.
@lru_cache(maxsize=KEPT_ROW_GROUPS)
def _read_group(path: Path, version: str, number: int, columns: tuple[str, ...]) -> pa.Table:
    with _reading(path):
        return pq.ParquetFile(path).read_row_group(number, columns=list(columns))


def _column(path: Path, name: str) -> pa.ChunkedArray:
    """Return a column of a file; not through Polars, to which brackets in a path are a pattern."""
    with _reading(path):
        return pq.ParquetFile(path).read(columns=[name])[name]


def _names_in_schema(schema: pa.Schema, label: str) -> list[str]:
    """Return class names kept in the schema's metadata: Hugging Face's `ClassLabel`, or a plain `classes` list."""
    metadata = schema.metadata or {}
    try:
        if b"huggingface" in metadata:
            return list(json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"])
    except (ValueError, KeyError, TypeError):
        return []  # features of another kind, or another tool's use of that key
    return metadata[b"classes"].decode().split(",") if b"classes" in metadata else []
