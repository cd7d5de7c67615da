"""A folder of images, one sub-folder a class: the layout that most image datasets are unpacked to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import polars as pl
from PIL import Image
from pydantic import PrivateAttr

from storage.datasets.arrow import instead
from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Recorded, Unreadable, numbered
from storage.datasets.images import ImageSource
from storage.datasets.listing import Listing, is_left_behind, list_files, told
from storage.errors import MissingSource
from storage.format.stores.mirror import SourcePath

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "dev", "eval"})


class ImageFolderSource(ImageSource):
    """`path/<class>/**/<name>.jpg`; classes are the sub-folders by name, `sample_id` is the path below `path`.

    With `classes`, folders are found by those names, in that order; a folder without sub-folders has images without
    labels, then. What is a sample, `listing.py` says.
    """

    kind: Literal["image_folder"]
    path: SourcePath

    _recorded: Recorded = PrivateAttr(default={})
    _numbers: dict[str, int] = PrivateAttr(default={})  # of classes, by name
    _listed: Listing | None = PrivateAttr(default=None)  # when its files were asked for: there may be a million

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        copy = self.model_copy()
        copy._recorded = recorded  # noqa: SLF001 - its own
        return copy

    def files(self) -> pl.DataFrame:
        self._listed = self._listing()
        files = set(self._listed.files)
        # A row stays a row: what a cache holds, such as a picture in a hidden folder, is not lost by a better rule.
        files |= {file for name in self._recorded if (file := self.path / name).is_file()}
        rows = [(_name(file, self.path), *LocalFile.of(file), 1) for file in sorted(files)]
        return pl.DataFrame(rows, schema=FILE_SCHEMA, orient="row")

    def notes(self) -> list[str]:
        listing, folders = self._listed or self._listing(), self._folders()
        filled = {file.relative_to(self.path).parts[0] for file in listing.files}
        empty = [name for name in self.class_names() if name not in filled] if folders else []
        return [
            *([f"passed over: {passed}"] if (passed := told(listing.passed_over)) else []),
            *([f"classes without an image: {', '.join(empty)}"] if empty else []),
            *([note] if self.classes is None and (note := numbered(folders)) else []),
        ]

    def look_at(self, file: str) -> LocalFile:
        return LocalFile.of(self.path / file)

    def check_unchanged(self, file: str, size: int, version: str) -> None:
        if (self.path / file).exists():  # one that is gone is unreadable, and no other picture suffers
            super().check_unchanged(file, size, version)

    def class_names(self) -> list[str]:
        return self.classes or list(self._folders())

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        label = self._label(file)
        for _ in range(rows):  # one file is one sample
            try:
                yield RawSample(file, (self.path / file).read_bytes(), label)
            except OSError as error:
                yield RawSample(file, Unreadable(f"{type(error).__name__}: {error.strerror}"), label)

    def _label(self, file: str) -> int | None:
        """Return the class of a file by its folder; one beside the folders has none. Raises MissingSource."""
        folder, *inside = Path(file).parts
        if not inside:
            return None
        if not self._numbers:  # once, not for each of a million files
            self._numbers = {name: number for number, name in enumerate(self.class_names())}
        if folder not in self._numbers:
            raise MissingSource(
                f"{file} of dataset {self.name} lies in no folder of a class", expected=", ".join(self._numbers)
            )
        return self._numbers[folder]

    def _folders(self) -> tuple[str, ...]:
        return _class_folders(self.path, LocalFile.of(self.path).version, self.classes is not None)

    def _listing(self) -> Listing:
        """Return the images of all classes. Raises MissingSource: folders and `classes` do not agree."""
        Image.init()  # only from here on does Pillow know its suffixes
        folders = self._folders()
        if (do := instead(self.path)) is not None:
            raise MissingSource(f"{self.path} is a folder of `datasets`, not of a sub-folder a class", do=do)
        if self.classes is None and folders and SPLITS.issuperset(name.lower() for name in folders):
            raise MissingSource(
                f"the sub-folders of {self.path} are called like splits, not like classes",
                found=", ".join(folders),
                expected="one sub-folder of images for each class",
                do=f'path = "{self.path.name}/{folders[0]}"; or, if they are classes, name them: '
                f"classes = {list(folders)}".replace("'", '"'),
            )
        if self.classes is not None and (strange := sorted(set(folders) - set(self.classes))):
            raise MissingSource(
                f"{self.path} has sub-folders that are none of the dataset's `classes`",
                found=", ".join(strange),
                expected=", ".join(self.classes),
                do="add them to `classes`, in the teacher's order, or move them elsewhere",
            )
        if not folders:
            return list_files(self.path, Image.EXTENSION)
        # no suffix is asked for, so that all that lies beside the folders is passed over
        beside, own = list_files(self.path, (), deep=False).passed_over, {f"{name}/" for name in folders}
        images = Listing(
            (), Counter({f"{kind} beside the classes": n for kind, n in beside.items() if kind not in own})
        )
        for name in folders:
            images += list_files(self.path / name, Image.EXTENSION)
        return images


@lru_cache(maxsize=8)  # one listing for a million files; a new class changes the folder's version
def _class_folders(path: Path, version: str, may_be_none: bool) -> tuple[str, ...]:
    if not path.is_dir():
        raise MissingSource(f"{path} is not a folder", expected="a folder with one sub-folder of images for each class")
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not is_left_behind(entry.name))
    if not names and not may_be_none:
        raise MissingSource(
            f"{path} has no sub-folders",
            expected="one sub-folder of images for each class",
            do="of images without labels, name the teacher's classes: classes = […]",
        )
    return tuple(names)


def _name(file: Path, folder: Path) -> str:
    """Return a file's path below a folder, which becomes its `sample_id`."""
    name = file.relative_to(folder).as_posix()
    if not name.isprintable():  # surrogates stand for bytes that are not UTF-8, which no table can hold
        raise MissingSource(
            f"a file name below {folder} is not printable UTF-8", found=repr(name), do="rename the file"
        )
    return name
