"""Parquet files with a column of encoded images and one of labels: the layout of Hugging Face image datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Unreadable
from storage.datasets.images import ImageSource
from storage.errors import MissingSource
from storage.options import JobPath


class ParquetImagesSource(ImageSource):
    """Images as `{bytes, path}` structs or plain binary.

    Attributes:
        path: one file, or a folder of `*.parquet` files taken by name.
        image: column of images.
        label: column of integer labels; "" for a dataset without labels.
        id: column of permanent ids; by default `<file>:<row in the file>`.
        classes: class names in label order; by default those in the schema's metadata, else the numbers up to the
            largest label.
    """

    kind: Literal["parquet_images"]
    path: JobPath
    image: str = "image"
    label: str = "label"
    id: str | None = None
    classes: Annotated[list[str], Field(min_length=1)] | None = None

    def content(self) -> dict[str, Any]:
        return super().content() | {"image": self.image, "label": self.label, "id": self.id}

    def files(self) -> pl.DataFrame:
        rows = [(p.name, *LocalFile.of(p), _open(p, self._columns).metadata.num_rows) for p in self._paths()]
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def class_names(self) -> list[str]:
        if not self.label:
            return []
        if self.classes is not None:
            return self.classes
        paths = self._paths()
        named = _names_in_schema(_open(paths[0], self._columns).schema_arrow, self.label)
        if named:
            return named
        largest = max(pl.read_parquet(path, columns=[self.label])[self.label].max() or 0 for path in paths)  # type: ignore[type-var]
        return [str(number) for number in range(int(largest) + 1)]  # type: ignore[call-overload]

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        path = self.path / file if self.path.is_dir() else self.path
        first = 0
        groups = _open(path, self._columns).metadata
        for number in range(groups.num_row_groups):
            stop = first + groups.row_group(number).num_rows
            begin, end = max(position, first), min(position + rows, stop)
            if begin < end:
                table = _read_group(path, LocalFile.of(path).version, number, self._columns).slice(begin - first, end - begin)
                yield from self._samples(table, file, begin)
            first = stop

    def _samples(self, table: pa.Table, file: str, position: int) -> Iterator[RawSample]:
        images = table[self.image].combine_chunks()
        payloads = (images.field("bytes") if pa.types.is_struct(images.type) else images).to_pylist()
        labels = table[self.label].to_pylist() if self.label else [None] * len(payloads)
        ids = table[self.id].to_pylist() if self.id else [f"{file}:{position + i}" for i in range(len(payloads))]
        for sample_id, payload, label in zip(ids, payloads, labels, strict=True):
            yield RawSample(str(sample_id), payload if payload else Unreadable("no image bytes"), label)

    @property
    def _columns(self) -> tuple[str, ...]:
        return tuple(name for name in (self.image, self.label, self.id) if name)

    def _paths(self) -> list[Path]:
        if not self.path.is_dir():
            LocalFile.of(self.path)
            return [self.path]
        paths = sorted(self.path.glob("*.parquet"))
        if not paths:
            raise MissingSource(f"{self.path} holds no *.parquet file")
        return paths


def _open(path: Path, columns: tuple[str, ...]) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise MissingSource(f"cannot read {path} as Parquet", found=str(error)) from None
    for column in columns:
        if column not in file.schema_arrow.names:
            raise MissingSource(
                f"{path} has no column {column}",
                found=", ".join(file.schema_arrow.names),
                do="name the columns in the job: image = …, label = …",
            )
    return file


@lru_cache(maxsize=2)  # neighbouring shards share a row group, and each task would decompress it again
def _read_group(path: Path, version: str, number: int, columns: tuple[str, ...]) -> pa.Table:
    return pq.ParquetFile(path).read_row_group(number, columns=list(columns))


def _names_in_schema(schema: pa.Schema, label: str) -> list[str]:
    """Return class names kept in the schema's metadata: Hugging Face's `ClassLabel`, or a plain `classes` list."""
    metadata = schema.metadata or {}
    if b"huggingface" in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        return list(features.get(label, {}).get("names", []))
    return metadata[b"classes"].decode().split(",") if b"classes" in metadata else []
