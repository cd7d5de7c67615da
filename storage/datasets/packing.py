"""Tokenised documents into blocks of one length, or whole ones into rows that part them. Integers only, no I/O.

S blocks, L positions of a block, n of a document.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from storage.datasets.base import RawSample, Unreadable
from storage.errors import BadRequest
from storage.inputs.packed import mark_first
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


def parted(
    documents: Sequence[Document | Unreadable], name: str, length: int, *, end_of_text: int, split: bool
) -> Iterator[RawSample]:
    """Yield documents each by itself, for `pack_rows`, called `name:0`, …; a split one in pieces, each as if alone."""
    number = 0
    for document in documents:
        blocks = pack([document], length, end_of_text=end_of_text, split=split, together=True)
        left = 0 if isinstance(document, Unreadable) else len(document.tokens) + document.ends
        for i in range(len(blocks.inputs_SL)):
            pair_2n = np.stack([blocks.inputs_SL[i, :left], blocks.labels_SL[i, :left]])
            payload = blocks.unreadable.get(i) or pair_2n
            yield RawSample(f"{name}:{number}", payload, None, blocks.remarks.get(i, ()))
            number, left = number + 1, left - length


def fill_rows(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Return which documents share a row: the longest first, each into the row that it leaves the least room in.

    Rows are in the order of their first documents, and so are documents in a row.

    Args:
        sizes: of the documents, `length` at most.
        length: of a row, at most.

    >>> fill_rows([3, 7, 2, 5, 1], 8)
    [[0, 3], [1, 4], [2]]

    Source: Krell et al. 2021, arXiv 2107.02027; best fit decreasing, as the `bfd` packing of TRL.
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # number of free positions → rows that have so many
    rooms: list[int] = []  # those numbers, ascending
    for document in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size = sizes[document]
        if (at := bisect_left(rooms, size)) < len(rooms):
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(document)
        if (left := room - size) not in with_room:
            insort(rooms, left)
        with_room.setdefault(left, []).append(row)
    return sorted(sorted(row) for row in rows)


def pack_rows(samples: Iterable[RawSample], length: int) -> list[RawSample]:
    """Return documents in rows of up to `length` tokens: each whole, with a mark on its first token.

    A row is called by its documents, `a.jsonl:0+512` or `a.jsonl:0+b.jsonl:9`. A document that cannot be read has a row
    to itself.

    Args:
        samples: documents, (2, n) each: tokens, and what each of them is to predict, the last one nothing of another.
        length: of a row.
    """
    given = list(samples)
    readable = [i for i, sample in enumerate(given) if isinstance(sample.payload, np.ndarray)]
    filled = fill_rows([_pair(given[i]).shape[1] for i in readable], length)
    rows = [[readable[i] for i in row] for row in filled]
    rows += [[i] for i, sample in enumerate(given) if isinstance(sample.payload, Unreadable)]
    return [join_documents([given[i] for i in row]) for row in sorted(rows)]


def join_documents(documents: Sequence[RawSample]) -> RawSample:
    """Return the row of some documents, as `pack_rows` makes it; one that cannot be read is alone."""
    first = documents[0]
    if isinstance(first.payload, Unreadable):
        return first
    pairs = []
    name, (file, _, _) = first.sample_id, first.sample_id.rpartition(":")
    for document in documents:
        ids_n, labels_n = _pair(document)
        pairs.append(np.stack([mark_first(ids_n), labels_n]))
        if document is not first:
            own, _, place = document.sample_id.rpartition(":")
            name += f"+{place if own == file else document.sample_id}"
            file = own
    remarks = tuple(remark for document in documents for remark in document.remarks)
    return RawSample(name, np.concatenate(pairs, axis=1), None, remarks)


def _pair(document: RawSample) -> np.ndarray:
    """Return tokens and labels of a document that can be read, (2, n)."""
    assert isinstance(document.payload, np.ndarray)
    return document.payload
