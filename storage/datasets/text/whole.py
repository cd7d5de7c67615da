"""Running text and documents as they were made before ranges: a file at a time, tokenised whole.

Only caches of that time are built on so (docs/adr/0017-text-as-ranges-of-bytes.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from storage.datasets.base import LocalFile, Unreadable
from storage.datasets.packing import Blocks, Document, check_length, pack
from storage.datasets.text.reading.cutting import decoded
from storage.datasets.text.reading.opening import open_bytes, size_of
from storage.datasets.text.reading.rows import Columns, Row, cut
from storage.datasets.text.reading.tables import rows_of
from storage.language.tokenizer import encoder

KEPT_FILES = 2  # tokenised, in each process: neighbouring shards share one
BYTES_PER_BYTE = 180  # of memory at the peak for each byte of text; 148 were measured


class Layout(NamedTuple):
    """What a dataset of that time says of its rows.

    Attributes:
        name: of the dataset.
        columns: of a document and perhaps its prompt; None: each file is a document.
        part: from which share to which, of characters or rows.
        block, end_of_text, split, together: as of `pack`.
    """

    name: str
    columns: Columns | None
    part: tuple[float, float]
    block: int
    end_of_text: int
    split: bool
    together: bool


@lru_cache(maxsize=KEPT_FILES)
def whole_blocks(layout: Layout, tokenizer: bytes, path: Path, file: LocalFile) -> Blocks:
    """Return the blocks of a file. Raises BadRequest: a document is longer than a block; MissingSource."""
    rows = list(_documents(layout, path))
    texts = [text for _, row in rows if isinstance(row, Row) for text in reversed(row.texts)]
    spelled = iter(encoder(tokenizer)(texts))
    documents: list[Document | Unreadable] = []
    for where, row in rows:
        if isinstance(row, Unreadable):
            documents.append(Unreadable(f"{where}: {row}"))
            continue
        # a prompt before its document, each by itself
        tokens = [next(spelled) for _ in row.texts]
        document = Document(np.concatenate(tokens), sum(map(len, tokens[:-1])))
        if not layout.split:
            check_length(layout.name, where, len(document.tokens) + 1, layout.block)
        documents.append(document)
    return pack(documents, layout.block, end_of_text=layout.end_of_text, split=layout.split, together=layout.together)


def _documents(layout: Layout, path: Path) -> Iterator[tuple[str, Row | Unreadable]]:
    if layout.columns is not None:
        yield from rows_of(path, layout.columns, layout.part)
        return
    with open_bytes(path) as file:
        text = decoded(path, file.read(size_of(path)), 0)
    start, stop = cut(len(text), layout.part)
    yield path.name, Row((text[start:stop],))
