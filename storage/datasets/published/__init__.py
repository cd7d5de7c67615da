"""Data sets as others lay them out: images in folders and tables, folders of Hugging Face, tars.

image_folder.py    images, one sub-folder a class
columns.py         images in a column of a table, whatever file it is in
parquet.py         Parquet by row groups
parquet_images.py  the kind of images in Parquet files
saved.py           which files a folder of Hugging Face has for a split
features.py        what its columns are
tars.py            where samples are in a tar
tar_names.py       which tars a path means
webdataset.py      the kind of images in tars; tar_texts.py of texts there
hf_folder.py       the kind of such a folder: of images, texts, chats or tables
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from storage.datasets.published.columns import ColumnImages
from storage.datasets.published.hf_folder import AnyHfFolder, HfImages, HfTables
from storage.datasets.published.image_folder import ImageFolderSource
from storage.datasets.published.parquet_images import ParquetImagesSource
from storage.datasets.published.saved import find_split
from storage.datasets.published.tar_names import find_tars
from storage.datasets.published.tar_texts import TarTexts, tar_rows
from storage.datasets.published.webdataset import WebDatasetSource


def are_tars(path: Path) -> bool:
    """Return whether a tar lies at a path, or a folder of some."""
    return path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar")))


def _pictures_or_texts(options: Any) -> str:
    """Return what the rows of tars are: texts, where a section names their `column`."""
    if isinstance(options, dict):
        return "texts" if options.keys() & {"column", "length", "tokenizer", "train_tokenizer"} else "pictures"
    return "texts" if isinstance(options, TarTexts) else "pictures"


AnyWebDataset = Annotated[
    Annotated[WebDatasetSource, Tag("pictures")] | Annotated[TarTexts, Tag("texts")], Discriminator(_pictures_or_texts)
]

__all__ = [
    "AnyHfFolder",
    "AnyWebDataset",
    "ColumnImages",
    "HfImages",
    "HfTables",
    "ImageFolderSource",
    "ParquetImagesSource",
    "TarTexts",
    "WebDatasetSource",
    "are_tars",
    "find_split",
    "find_tars",
    "tar_rows",
]
