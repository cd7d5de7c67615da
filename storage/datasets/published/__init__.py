"""Data sets as others lay them out: images in folders and tables, folders of Hugging Face, tars.

image_folder.py    images, one sub-folder a class
columns.py         images in a column of a table, whatever file it is in
parquet.py         Parquet by row groups
parquet_images.py  the kind of images in Parquet files
saved.py           which files a folder of Hugging Face has for a split
features.py        what its columns are
tars.py            where samples are in a tar
webdataset.py      the kind of images in tars
hf_folder.py       the kind of such a folder: of images, texts, chats or tables
"""

from storage.datasets.published.columns import ColumnImages
from storage.datasets.published.hf_folder import AnyHfFolder, HfImages, HfTables
from storage.datasets.published.image_folder import ImageFolderSource
from storage.datasets.published.parquet_images import ParquetImagesSource
from storage.datasets.published.saved import find_split
from storage.datasets.published.webdataset import WebDatasetSource

__all__ = [
    "AnyHfFolder",
    "ColumnImages",
    "HfImages",
    "HfTables",
    "ImageFolderSource",
    "ParquetImagesSource",
    "WebDatasetSource",
    "find_split",
]
