"""Parquet files with a column of encoded images and one of labels: the layout of Hugging Face image datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from storage.datasets.arrow import instead, several_splits
from storage.datasets.base import LocalFile
from storage.datasets.listing import lacking, list_files, passed_over
from storage.datasets.published.columns import ColumnImages
from storage.datasets.published.parquet import ParquetTable, open_parquet
from storage.errors import MissingSource


class ParquetImagesSource(ColumnImages):
    """Images in the columns of one Parquet file, or of a folder of `*.parquet` files taken by name."""

    kind: Literal["parquet_images"]

    def passed_over(self) -> list[str]:
        paths = self.paths()
        return [*passed_over(self.path, (".parquet",)), *several_splits(paths), *lacking(self.path, paths)]

    def _are_deeper(self) -> bool:
        return bool(list_files(self.path, (".parquet",)).files)

    def open_table(self, path: Path) -> ParquetTable:
        return open_parquet(path)

    def at(self, file: str) -> Path:
        return self.path / file if self.path.is_dir() else self.path

    def file_of(self, path: Path) -> str:
        return path.name

    def paths(self) -> list[Path]:
        if not self.path.is_dir():
            LocalFile.of(self.path)  # raises if there is none
            return [self.path]
        paths = list_files(self.path, (".parquet",), deep=False).files
        if not paths:
            deeper = 'kind = "hf_folder", or the folder that they are in' if self._are_deeper() else None
            raise MissingSource(f"{self.path} holds no *.parquet file", do=instead(self.path) or deeper)
        return list(paths)
