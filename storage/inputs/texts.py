"""Texts: rows of token ids, each at its own length. B rows of a batch, S of a shard, L positions of the longest."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.inputs.base import Stored
from storage.inputs.ragged import Ragged
from storage.inputs.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from storage.format.specs import DatasetSpec
    from storage.inputs.encoded import OwnSize

PADDING = -1  # no id, so that a batch says itself where its rows end


class Texts(Tokens):
    """Stored flat as int32; a batch is padded with PADDING to its own longest row, and a model is given ids and mask.

    What padding is given as an id, 0, is of no meaning: a model must leave out what the mask does not name.
    """

    name = "texts"
    own_length = True
    sent_whole = False

    def fits(self, row_shape: Sequence[int], shape: Sequence[int]) -> bool:
        return len(row_shape) == 1 and 0 < row_shape[0] <= shape[0]

    def blank_rows(self, num_rows: int, shape: Sequence[int], dtype: str) -> MutableSequence[np.ndarray]:
        return [np.empty(0, dtype) for _ in range(num_rows)]

    def stored(self, rows: Any, dtype: str) -> Stored:
        return Ragged.of(rows, dtype)

    def fault(self, stored_S: Stored, dataset: DatasetSpec) -> str | None:
        assert isinstance(stored_S, Ragged)
        if (longest := int(stored_S.lengths.max(initial=0))) > dataset.input_shape[0]:
            return f"a row of {longest} tokens, of {dataset.input_shape[0]} at most"
        return super().fault(stored_S.flat_T, dataset)

    def shown(self, stored_S: Stored, chosen_S: np.ndarray, own: OwnSize | None = None) -> Tensor:
        assert isinstance(stored_S, Ragged)
        return pad(stored_S.take(chosen_S))

    def batches(self, shown_B: Tensor, batch_size: int) -> list[Tensor]:
        # The longest first, so that what does not fit into memory fails at once; rows alike in order of the dataset.
        by_length_B = (shown_B != PADDING).sum(1).argsort(descending=True, stable=True)
        return list(by_length_B.split(batch_size))

    def trimmed(self, shown_B: Tensor) -> Tensor:
        if shown_B.device.type == "meta":  # where there are no values, all rows are the longest
            return shown_B
        return shown_B[:, : max(1, int((shown_B != PADDING).sum(1).max()))]

    def inside(self, arguments_B: Tensor) -> Tensor | None:
        return arguments_B != PADDING

    def spread(self, arguments_B: Tensor) -> tuple[Tensor, ...]:
        return ids_and_mask(arguments_B)


def pad(rows: Ragged) -> Tensor:
    """Return rows side by side, int32 (B, L), PADDING behind each that is not the longest."""
    import torch

    return torch.from_numpy(rows.padded(PADDING).astype(np.int32, copy=False))


def ids_and_mask(padded_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a model of texts is called with: ids, int64 (B, L), 0 where there is none, and where there is one.

    >>> import torch
    >>> ids_and_mask(torch.tensor([[7, 8, 9], [4, -1, -1]]))
    (tensor([[7, 8, 9],
            [4, 0, 0]]), tensor([[ True,  True,  True],
            [ True, False, False]]))
    """
    return padded_BL.clamp(min=0), padded_BL != PADDING
