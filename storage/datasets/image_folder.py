"""A folder of images, one sub-folder a class: the layout that most image datasets are unpacked to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl
from PIL import Image

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Unreadable
from storage.datasets.images import ImageSource
from storage.errors import MissingSource
from storage.options import JobPath


class ImageFolderSource(ImageSource):
    """`path/<class>/**/<name>.jpg`; classes are the sub-folders by name, `sample_id` is the path below `path`."""

    kind: Literal["image_folder"]
    path: JobPath

    def files(self) -> pl.DataFrame:
        Image.init()
        rows = [
            (file.relative_to(self.path).as_posix(), *LocalFile.of(file), 1)
            for name in self.class_names()
            for file in sorted((self.path / name).rglob("*"))
            if file.suffix.lower() in Image.EXTENSION and file.is_file()
        ]
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def class_names(self) -> list[str]:
        if not self.path.is_dir():
            raise MissingSource(f"there is no folder {self.path}", do="paths in a job file are relative to its own folder")
        names = sorted(entry.name for entry in self.path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if not names:
            raise MissingSource(f"{self.path} has no sub-folders", expected="one sub-folder of images for each class")
        return names

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        label = self._labels[Path(file).parts[0]]
        for _ in range(rows):  # one file is one sample
            try:
                yield RawSample(file, (self.path / file).read_bytes(), label)
            except OSError as error:
                yield RawSample(file, Unreadable(f"{type(error).__name__}: {error.strerror}"), label)

    @property
    def _labels(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.class_names())}
