"""Sources of samples: one file per kind, chosen by `kind` in a job's `[[dataset]]`.

base.py            what every kind offers: files with row counts, raw samples with permanent ids, decoding
listing.py         which files of a folder are samples, and what is passed over
published/         images as others lay them out: in folders, tables and tars; folders of Hugging Face
arrow.py           Arrow streams, mapped, and what a schema says
images.py          what all images share: how one is shown, by a named policy
arrays.py          NumPy arrays
digits.py          scikit-learn's digits
factory.py         a user's own dataset
table/             tables: numbers and categories, by the names of columns
text/              text, in blocks or each with its class
chat/              chats, of which the assistant's tokens are to be predicted
tokens.py          token ids in NumPy files
packing.py         documents into blocks of one length
samples.py         samples of one's own as rows of a dataset, for whoever predicts with a student
"""

from typing import Annotated

from pydantic import Field

from storage.datasets.arrays import ArraysSource
from storage.datasets.base import RawSample, RecordedFile, Source, Unreadable, check_label
from storage.datasets.chat import ChatSource
from storage.datasets.digits import DigitsSource
from storage.datasets.factory import FactorySource
from storage.datasets.published import AnyHfFolder, AnyWebDataset, ImageFolderSource, ParquetImagesSource
from storage.datasets.table import TableSource
from storage.datasets.text import AnyText
from storage.datasets.tokens import TokensSource

AnySource = Annotated[
    DigitsSource
    | ImageFolderSource
    | ParquetImagesSource
    | AnyHfFolder
    | AnyWebDataset
    | ArraysSource
    | FactorySource
    | TableSource
    | AnyText
    | ChatSource
    | TokensSource,
    Field(discriminator="kind"),
]

__all__ = ["AnySource", "RawSample", "RecordedFile", "Source", "Unreadable", "check_label"]
