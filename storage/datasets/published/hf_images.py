"""Images of a folder of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import PrivateAttr

from storage.datasets.arrow import SUFFIX, open_arrow
from storage.datasets.base import Source
from storage.datasets.published.columns import ColumnImages, TableFile
from storage.datasets.published.features import advice
from storage.datasets.published.parquet import open_parquet
from storage.datasets.published.saved import SavedSplit, find_split
from storage.options import JobPath


class SplitFiles(Source):
    """The files of one split.

    Attributes:
        path: a folder of `save_to_disk`, or a repository of the Hub in Parquet.
        split: by name; needed where there are several.
    """

    path: JobPath
    split: str | None = None

    _found: list[SavedSplit] = PrivateAttr(default_factory=list)  # once it was looked for

    def at(self, file: str) -> Path:
        """Return where a file lies."""
        return self._saved.root / file

    def file_of(self, path: Path) -> str:
        """Return what a file is called in a plan: its path below the folder."""
        return path.relative_to(self._saved.root).as_posix()

    def paths(self) -> list[Path]:
        """Return the files, in order. Raises MissingSource: there are none."""
        return list(self._saved.files)

    def passed_over(self) -> list[str]:
        """Return a note on what lies beside them."""
        return [] if self._saved.passed_over is None else [f"passed over: {self._saved.passed_over}"]

    @property
    def _saved(self) -> SavedSplit:
        if not self._found:
            self._found.append(find_split(self.path, self.split))
        return self._found[0]


class HfImages(SplitFiles, ColumnImages):
    """Images of a split, in their column."""

    kind: Literal["hf_folder"]

    def content(self) -> dict[str, Any]:
        # A promise says what a row is; that it lies in such a folder is a matter of where, as a path is.
        return super().content() | {"kind": "parquet_images"}

    def notes(self) -> list[str]:
        return [*self.passed_over(), *super().notes()]

    def open_table(self, path: Path) -> TableFile:
        return open_arrow(path) if path.suffix == SUFFIX else open_parquet(path)

    def advice(self, schema: pa.Schema) -> str:
        return advice(schema)
