"""The kind `hf_folder` of a job: a folder of Hugging Face, whose rows are images, texts, chats or cells of a table.

Where rows come from is told here; what a row is, each of the kinds that these are made of says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Discriminator, PrivateAttr, Tag

from storage.datasets.arrow import SUFFIX, class_label, open_arrow
from storage.datasets.base import Source
from storage.datasets.chat import ChatSource
from storage.datasets.published.columns import ColumnImages, TableFile
from storage.datasets.published.features import advice
from storage.datasets.published.parquet import open_parquet
from storage.datasets.published.saved import SavedSplit, find_split
from storage.datasets.table import TableSource
from storage.datasets.table.reading import Dialect, schema_of
from storage.datasets.text import LabelledTextSource, TextSource
from storage.datasets.text.reading.rows import Columns
from storage.errors import MissingSource
from storage.format.stores.mirror import SourcePath


class SplitFiles(Source):
    """The files of one split.

    Attributes:
        path: a folder of `save_to_disk`, or a repository of the Hub in Parquet.
        split: by name; needed where there are several.
    """

    path: SourcePath
    split: str | None = None

    _found: list[SavedSplit] = PrivateAttr(default_factory=list)  # once it was looked for

    made_as: ClassVar[str]  # the kind that says what a row is
    rows_are: ClassVar[str]  # which of these here

    def content(self) -> dict[str, Any]:
        # A promise says what a row is; that it lies in such a folder is a matter of where, as a path is.
        return super().content() | {"kind": self.made_as}

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

    made_as = "parquet_images"
    rows_are = "images"

    def open_table(self, path: Path) -> TableFile:
        return open_arrow(path) if path.suffix == SUFFIX else open_parquet(path)

    def advice(self, schema: pa.Schema) -> str:
        return advice(schema)


class HfBlocks(SplitFiles, TextSource):
    """Documents of a split, in blocks."""

    kind: Literal["hf_folder"]  # type: ignore[assignment]  # Pydantic chooses by it
    column: str | None = "text"

    made_as = "text"
    rows_are = "blocks"


class HfTexts(SplitFiles, LabelledTextSource):
    """Texts of a split, each with its class by the name that `ClassLabel` has for it, or with a vector."""

    kind: Literal["hf_folder"]  # type: ignore[assignment]

    made_as = "text"
    rows_are = "texts"

    def class_names(self) -> list[str]:
        return list(self._by_label.values()) or super().class_names()

    @property
    def _columns(self) -> Columns:
        return super()._columns._replace(names_of=tuple(_classes(self.paths(), self.label)))

    @property
    def _by_label(self) -> dict[str, str]:
        return super()._by_label or {name: name for name in _classes(self.paths(), self.label)}


class HfTables(SplitFiles, TableSource):
    """Rows of a split, of numbers and categories, each with its class by name."""

    kind: Literal["hf_folder"]  # type: ignore[assignment]

    made_as = "table"
    rows_are = "table"

    @property
    def _dialect(self) -> Dialect:
        return super()._dialect._replace(named=True)

    @property
    def _by_label(self) -> dict[str, str]:
        return super()._by_label or {name: name for name in _classes(self.paths(), self.label)}


class HfChats(SplitFiles, ChatSource):
    """Chats of a split."""

    kind: Literal["hf_folder"]  # type: ignore[assignment]

    made_as = "chat"
    rows_are = "chats"


def _classes(paths: Sequence[Path], label: str | int | None) -> list[str]:
    """Return the names of the classes, in the order of their numbers; none if nobody says them.

    Raises:
        MissingSource: files of a split say others.
    """
    if not isinstance(label, str):
        return []
    names = {path: class_label(schema_of(path), label) for path in paths}
    if other := next((path for path in names if names[path] != names[paths[0]]), None):
        raise MissingSource(
            f"{other.name} says other classes than {paths[0].name}",
            found=", ".join(names[other]) or "none",
            expected=", ".join(names[paths[0]]) or "none",
            do="save them as one data set",
        )
    return names[paths[0]]


def _asked(options: Any) -> str:
    """Return what the rows of a section of a job are: what its keys are of.

    >>> _asked({"image": "img", "label": "fine", "size": 32}), _asked({"block": 256, "train_tokenizer": {}})
    ('images', 'blocks')
    >>> _asked({"column": "text", "label": "label", "length": 128}), _asked({"tokenizer": "llama", "length": 2048})
    ('texts', 'chats')
    >>> _asked({"numeric": ["weight", "height"], "label": "species"})
    'table'
    """
    if not isinstance(options, dict):  # a source that is validated once more
        return str(getattr(options, "rows_are", HfImages.rows_are))
    if "task" in options:
        return HfBlocks.rows_are if options["task"] == TextSource.model_fields["task"].default else HfTexts.rows_are
    own = [options.keys() & _only(kind) for kind in (TextSource, LabelledTextSource, ChatSource)]
    if not any(own):
        return HfTables.rows_are if options.keys() & _only(TableSource) else HfImages.rows_are
    if "label" in options:
        return HfTexts.rows_are
    return HfChats.rows_are if "block" not in options and own[2] else HfBlocks.rows_are


def _only(kind: type[Source]) -> set[str]:
    """Return the options of a kind that images have not."""
    return set(kind.model_fields) - set(HfImages.model_fields)


AnyHfFolder = Annotated[
    Annotated[HfImages, Tag(HfImages.rows_are)]
    | Annotated[HfBlocks, Tag(HfBlocks.rows_are)]
    | Annotated[HfTexts, Tag(HfTexts.rows_are)]
    | Annotated[HfChats, Tag(HfChats.rows_are)]
    | Annotated[HfTables, Tag(HfTables.rows_are)],
    Discriminator(_asked),
]
