"""Sources of samples: one file per kind, chosen by `kind` in a job's `[[dataset]]`."""

from typing import Annotated

from pydantic import Field

from storage.datasets.arrays import ArraysSource
from storage.datasets.base import RawSample, RecordedFile, Source, Unreadable, check_label
from storage.datasets.digits import DigitsSource
from storage.datasets.factory import FactorySource
from storage.datasets.image_folder import ImageFolderSource
from storage.datasets.parquet_images import ParquetImagesSource
from storage.datasets.text import AnyText
from storage.datasets.tokens import TokensSource

AnySource = Annotated[
    DigitsSource | ImageFolderSource | ParquetImagesSource | ArraysSource | FactorySource | AnyText | TokensSource,
    Field(discriminator="kind"),
]

__all__ = ["AnySource", "RawSample", "RecordedFile", "Source", "Unreadable", "check_label"]
