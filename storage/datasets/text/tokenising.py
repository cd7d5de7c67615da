"""Texts of any number and length in tokens, so that a bounded amount of text is with the tokenizer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from storage.datasets.base import Unreadable
from storage.datasets.text.reading.cutting import PIECE, pieces_of
from storage.datasets.text.reading.rows import Row
from storage.language.tokenizer import TEXTS_AT_ONCE, Spelled

Place = tuple[int, Row | Unreadable]


def batches_of(documents: Iterable[Place]) -> Iterator[list[Place]]:
    """Yield documents in batches of up to PIECE characters, and the last document of each whole."""
    batch: list[Place] = []
    size = 0
    for place, row in documents:
        batch.append((place, row))
        size += sum(map(len, row.texts)) if isinstance(row, Row) else 0
        if size >= PIECE or len(batch) == TEXTS_AT_ONCE:
            yield batch
            batch, size = [], 0
    yield batch


def in_pieces(texts: Sequence[str], encode: Callable[[Sequence[str]], list[np.ndarray]]) -> list[np.ndarray]:
    """Return the tokens of texts, of which those that are long are tokenised piece by piece."""
    if all(len(text) <= PIECE for text in texts):
        return encode(texts)
    return [np.concatenate([encode([piece])[0] for _, piece in pieces_of(text)]) for text in texts]


def spelled_in_pieces(texts: Sequence[str], spell: Callable[[Sequence[str]], list[Spelled]]) -> list[Spelled]:
    """Return the tokens of texts and where in them they are, otherwise as `in_pieces`."""
    if all(len(text) <= PIECE for text in texts):
        return spell(texts)
    found = []
    for text in texts:
        parts = [(place, spell([piece])[0]) for place, piece in pieces_of(text)]
        offsets = [spelled.offsets + np.int32(place) for place, spelled in parts]
        found.append(Spelled(np.concatenate([spelled.ids for _, spelled in parts]), np.concatenate(offsets)))
    return found
