"""Tokenised documents into blocks of one length, and what is to be predicted where. Integers only, no I/O.

S blocks, L positions of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from storage.datasets.base import Unreadable
from storage.errors import BadRequest
from storage.tasks import NO_LABEL


class Document(NamedTuple):
    """A tokenised document.

    Attributes:
        tokens: without the end-of-text token.
        num_prompt: the first of them that are given, not predicted.
        remarks: what is to be told of it.
        ends: whether this is its end; of one that goes on elsewhere nobody is asked for what comes next.
    """

    tokens: np.ndarray
    num_prompt: int = 0
    remarks: tuple[str, ...] = ()
    ends: bool = True


class Blocks(NamedTuple):
    """Rows of a dataset of tokens.

    Attributes:
        inputs_SL: int32 token ids.
        labels_SL: int32, the next token at each position, or NO_LABEL.
        unreadable: number of a block → why there is nothing in it.
        remarks: number of a block → what is to be told of the documents that begin in it.
    """

    inputs_SL: np.ndarray
    labels_SL: np.ndarray
    unreadable: dict[int, Unreadable]
    remarks: dict[int, tuple[str, ...]]


def pack(
    documents: Sequence[Document | Unreadable], length: int, *, end_of_text: int, split: bool, together: bool
) -> Blocks:
    """Return documents in blocks, in order, an end-of-text token after each.

    No label crosses a boundary: an end-of-text token is predicted and predicts nothing. What is left of a block is
    end-of-text tokens that nobody is asked for. A document that cannot be read has a block to itself, so that all
    others keep their places when it is the only one to change; empty documents leave no trace.

    Args:
        documents: without end-of-text tokens.
        length: L, of a block.
        end_of_text: its id.
        split: cut documents wherever a block ends; else a document that does not fit into the rest of a block begins
            the next one, and none may be longer than a block.
        together: several documents in a block; else each begins one.
    """
    unreadable: dict[int, Unreadable] = {}
    remarks: dict[int, tuple[str, ...]] = {}
    placed: list[tuple[int, Document]] = []
    cursor = 0
    for document in documents:
        next_block = -(-cursor // length) * length  # rounded up: where a block begins
        if isinstance(document, Unreadable):
            unreadable[next_block // length] = document
            cursor = next_block + length
            continue
        if not len(document.tokens):
            continue
        size = len(document.tokens) + document.ends  # and the end-of-text token
        assert split or size <= length
        if not together or (not split and cursor % length + size > length):
            cursor = next_block
        placed.append((cursor, document))
        if document.remarks:
            remarks[cursor // length] = remarks.get(cursor // length, ()) + document.remarks
        cursor += size
    total = -(-cursor // length) * length
    inputs, labels = np.full(total, end_of_text, np.int32), np.full(total, NO_LABEL, np.int32)
    for start, (tokens, num_prompt, _, ends) in placed:
        stop = start + len(tokens)
        inputs[start:stop] = tokens
        stop -= not ends
        first = start + max(0, num_prompt - 1)  # the last token of the prompt predicts the first after it
        labels[first:stop] = inputs[first + 1 : stop + 1]  # the last of them predicts end-of-text
    return Blocks(inputs.reshape(-1, length), labels.reshape(-1, length), unreadable, remarks)


def check_length(dataset: str, where: str, size: int, length: int, *, exactly: bool = True) -> None:
    """Raise BadRequest if a document of a size, with its end-of-text token, is longer than a block.

    Args:
        dataset: its name.
        where: the document is.
        size: in tokens.
        length: of a block.
        exactly: whether it is not longer still.
    """
    if size > length:
        raise BadRequest(
            f"a document of {dataset} is longer than a block",
            found=f"{where}: {'' if exactly else 'at least '}{size} tokens, end-of-text among them",
            expected=f"at most block = {length}",
            do='long_documents = "split" cuts it' + (f"; or block = {size}" if exactly else ""),
        )
