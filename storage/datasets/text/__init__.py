"""Text, tokenised: of one kind in a job, of two by what is asked of it.

reading/       as it lies in files: opened, cut, read as rows
tokenising.py  a bounded amount of it with the tokenizer at once
density.py     how many rows and tokens of it there are, from a sample
files.py       what all its kinds share: where it lies, and whose tokenizer it has
ranged.py      what blocks and chats share, which are read in ranges of bytes
blocks.py      documents packed into blocks, each position to be predicted
whole.py       the same as caches from before ranges have it
labelled.py    a text a row, at its own length, with one class, or with a vector for an answer
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import Discriminator, Tag

from storage.datasets.text.blocks import TextSource
from storage.datasets.text.labelled import LabelledTextSource
from storage.tasks.language_model import LanguageModel
from storage.tasks.text_classification import TextClassification


def _asked(options: Any) -> str:
    """Return which of the two a section of a job is: what its `task` says, else whether it has a `label`."""
    # a dict of a job, or a source that is validated once more
    task, label = (
        (options.get("task"), options.get("label"))
        if isinstance(options, dict)
        else (getattr(options, "task", None), getattr(options, "label", None))
    )
    # Of one `kind` in a job: here a section becomes one source or the other.
    of_row = label is not None if task is None else task in get_args(LabelledTextSource.model_fields["task"].annotation)
    return TextClassification.name if of_row else LanguageModel.name


AnyText = Annotated[
    Annotated[TextSource, Tag(LanguageModel.name)] | Annotated[LabelledTextSource, Tag(TextClassification.name)],
    Discriminator(_asked),
]

__all__ = ["AnyText", "LabelledTextSource", "TextSource"]
