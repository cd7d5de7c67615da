"""Packed: rows of several documents each, of which none may see another. B rows of a batch, L positions of the longest.

Where documents begin lies in the ids themselves, so that whoever has a row, on disk, in memory or on a GPU, has it: the
first id of each document is stored as −2 − id. Teacher and student are given ids and positions that count from there.

Source: Krell et al. 2021, arXiv 2107.02027, packing without cross-contamination; positions as in its section 3.2.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from storage.errors import BadRequest
from storage.inputs.base import Stored
from storage.inputs.ragged import Ragged
from storage.inputs.sequences import Sequences
from storage.inputs.texts import PADDING

if TYPE_CHECKING:
    from torch import Tensor

    from storage.format.specs import DatasetSpec

TRIED_DOCUMENTS = 8  # of a row, on which a model is tried
FIRST = PADDING - 1  # of a document: id 0; an id is so much below it


class Packed(Sequences):
    """Stored as sequences are, but for the first id of each document; a model is given ids and positions."""

    name = "packed"
    packed = True

    def fault(self, stored_S: Stored, dataset: DatasetSpec) -> str | None:
        assert isinstance(stored_S, Ragged)
        begins = stored_S.offsets[:-1][stored_S.lengths > 0]
        if (unmarked := np.asarray(stored_S.flat_T)[begins] > FIRST).any():
            return f"{int(unmarked.sum())} rows that begin within a document"
        return super().fault(Ragged(self.ids(np.asarray(stored_S.flat_T)), stored_S.offsets), dataset)

    def ids(self, stored: np.ndarray) -> np.ndarray:
        return np.where(stored <= FIRST, FIRST - stored, stored).astype(stored.dtype, copy=False)

    def spread(self, arguments_B: Tensor) -> tuple[Tensor, ...]:
        return ids_and_positions(arguments_B)

    def call(self, model: Any, arguments_B: Tensor) -> Any:
        return call_parted(model, *self.spread(arguments_B))


def mark_first(ids_L: np.ndarray) -> np.ndarray:
    """Return the ids of a document as they are stored, the first of them marked.

    >>> mark_first(np.array([0, 7, 8], np.int32)).tolist(), mark_first(np.array([5], np.int32)).tolist()
    ([-2, 7, 8], [-7])
    """
    marked_L = np.array(ids_L)
    marked_L[:1] = FIRST - marked_L[:1]
    return marked_L


def count_documents(stored_S: Stored) -> tuple[int, int]:
    """Return how many documents, and tokens, the rows of a shard have."""
    assert isinstance(stored_S, Ragged)
    return int(np.count_nonzero(np.asarray(stored_S.flat_T) <= FIRST)), len(stored_S.flat_T)


def ids_and_positions(packed_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a model of packed rows is called with: ids and positions in their document, int64 (B, L) both.

    What is behind a row is the id 0, in a document of its own. A row without a mark is one document.

    >>> import torch
    >>> ids_and_positions(torch.tensor([[-9, 8, -2, 4, 5], [-6, 3, 2, -1, -1]]))
    (tensor([[7, 8, 0, 4, 5],
            [4, 3, 2, 0, 0]]), tensor([[0, 1, 0, 1, 2],
            [0, 1, 2, 0, 1]]))
    """
    import torch

    outside_BL, marked_BL = packed_BL == PADDING, packed_BL <= FIRST
    begins_BL = marked_BL | (outside_BL & (outside_BL.cumsum(1) == 1))
    places_L = torch.arange(packed_BL.shape[1], device=packed_BL.device)
    began_BL = (places_L * begins_BL).cummax(1).values
    return torch.where(marked_BL, FIRST - packed_BL, packed_BL.clamp(min=0)), places_L - began_BL


def documents_of(positions_BL: Tensor) -> Tensor:
    """Return which document of its row each position is in, int64 (B, L), of positions that count from its first.

    >>> import torch
    >>> documents_of(torch.tensor([[0, 1, 0, 1, 2]]))
    tensor([[1, 1, 2, 2, 2]])
    """
    return (positions_BL == 0).cumsum(1)


def call_parted(model: Any, ids_BL: Tensor, positions_BL: Tensor) -> Any:
    """Return what a model, or its body, says of packed rows.

    Models of transformers are given `position_ids` and no mask: from positions that begin anew their masks part
    documents, windows and all. Not all of them do, so nobody may rely on it who has not tried it.

    Raises:
        BadRequest: it takes no positions.
    """
    parameters = inspect.signature(model.forward).parameters
    if "position_ids" in parameters:
        return model(input_ids=ids_BL, position_ids=positions_BL)
    taken = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    if len(taken) < 2 and not any(p.kind == p.VAR_POSITIONAL for p in taken):
        raise BadRequest(
            f"{type(model).__name__} takes no positions, and the rows are packed",
            found=f"forward({', '.join(parameters)})",
            expected="forward(ids, positions), in which documents do not see each other, or one with `position_ids`",
            do="pack = false in [[dataset]]; or another model",
        )
    return model(ids_BL, positions_BL)


class Parted(NamedTuple):
    """How a model parts documents, by the largest difference of its answers at their ends.

    Attributes:
        crossing: to the same documents behind another one, of which they must see nothing.
        off: to each document in a row by itself.
        largest: of its answers.
    """

    crossing: float
    off: float
    largest: float


def has_several(packed_L: Tensor) -> bool:
    """Return whether a row has more than one document."""
    return int((packed_L <= FIRST).sum()) > 1


def try_parted(ask: Callable[[Tensor, Tensor], Tensor], packed_L: Tensor, num_ids: int) -> Parted:
    """Return how a model parts the first documents of a row, which has several.

    Args:
        ask: returns what it says of packed rows, (B, L), at some sites, bool (B, L), in their order: (P, C).
        packed_L: the row.
        num_ids: of the vocabulary.
    """
    import torch

    begins = (packed_L <= FIRST).nonzero()[:, 0].tolist()
    inside = int((packed_L != PADDING).sum())
    ends = [*begins[1:], inside][:TRIED_DOCUMENTS]
    row_L = packed_L[: ends[-1]]
    at_ends_L = torch.zeros(len(row_L), dtype=torch.bool)
    at_ends_L[[end - 1 for end in ends]] = True
    said = ask(row_L[None], at_ends_L[None])
    # Another first document of the same length: every id the next one, and still marked.
    ids_L, _ = (each[0] for each in ids_and_positions(row_L[None]))
    other_L = ((ids_L + 1) % num_ids).to(row_L.dtype)
    behind_L = torch.arange(len(row_L), device=row_L.device) >= ends[0]
    other_L = torch.where(behind_L, row_L, torch.where(row_L <= FIRST, FIRST - other_L, other_L))
    moved = ask(other_L[None], at_ends_L[None])
    documents = row_L.tensor_split(ends[:-1])
    alone_BL = torch.nn.utils.rnn.pad_sequence(list(documents), batch_first=True, padding_value=float(PADDING))
    lengths_B = torch.tensor([len(document) for document in documents])
    alone = ask(alone_BL, torch.arange(alone_BL.shape[1]) == lengths_B[:, None] - 1)
    largest = said.nan_to_num(0.0, 0.0, 0.0).abs().max()
    return Parted(*(float(each) for each in (_apart(said[1:], moved[1:]), _apart(said, alone), largest)))


def _apart(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).nan_to_num(0.0, 0.0, 0.0).abs().max()
