"""A folder of images, one sub-folder a class: the layout that most image datasets are unpacked to."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
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
            (_name(file, self.path), *LocalFile.of(file), 1)
            for name in self.class_names()
            for file in sorted((self.path / name).rglob("*"))
            if file.suffix.lower() in Image.EXTENSION and file.is_file()
        ]
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def class_names(self) -> list[str]:
        return list(_labels(self.path, LocalFile.of(self.path).version))

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        label = _labels(self.path, LocalFile.of(self.path).version)[Path(file).parts[0]]
        for _ in range(rows):  # one file is one sample
            try:
                yield RawSample(file, (self.path / file).read_bytes(), label)
            except OSError as error:
                yield RawSample(file, Unreadable(f"{type(error).__name__}: {error.strerror}"), label)


@lru_cache(maxsize=8)  # one listing for a million files; a new class changes the folder's version
def _labels(path: Path, version: str) -> dict[str, int]:
    if not path.is_dir():
        raise MissingSource(f"{path} is not a folder", expected="a folder with one sub-folder of images for each class")
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise MissingSource(f"{path} has no sub-folders", expected="one sub-folder of images for each class")
    return {name: number for number, name in enumerate(names)}


def _name(file: Path, folder: Path) -> str:
    """Return a file's path below a folder, which becomes its `sample_id`."""
    name = file.relative_to(folder).as_posix()
    if not name.isprintable():  # surrogates stand for bytes that are not UTF-8, which no table can hold
        raise MissingSource(
            f"a file name below {folder} is not printable UTF-8", found=repr(name), do="rename the file"
        )
    return name
