"""What every kind of inputs answers to those who build caches and train students.

Shapes: B rows of a batch, S of a shard; the shape of one row is the dataset's `input_shape`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from storage.inputs.ragged import Ragged

if TYPE_CHECKING:  # `cache status` asks which kind, and should not pay two seconds for torch
    import torch
    from torch import Tensor

    from storage.format.specs import DatasetSpec
    from storage.inputs.encoded import OwnSize, ToDecode
    from storage.views.shown import View


Stored = np.ndarray | Ragged  # the inputs of a shard


class Inputs(ABC):
    """What rows are made of.

    Attributes:
        name: of the kind.
        normalised: whether a model's `mean` and `std` apply to them.
        scaled: whether they are stored as bytes, of which a model is given 0 … 1.
        tokenised: whether a tokenizer made them, which teacher and student must share to mean the same by an id.
        own_length: whether each row has a length of its own, up to that of the dataset's `input_shape`.
        packed: whether a row may have several documents, of which none may see another.
        sent_whole: whether all rows of a shard may go to a GPU before they are batched; rows of their own length may
            not, for the host must see how long the longest of a batch is.
        dtypes: which samples may be of, in words; one of another would be shown as something else.
        misfit_help: ends a message about samples of several shapes: what a user can do.
    """

    name: ClassVar[str]
    normalised: ClassVar[bool]
    scaled: ClassVar[bool] = False
    tokenised: ClassVar[bool]
    own_length: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    sent_whole: ClassVar[bool] = True
    misfit_help: ClassVar[str] = ""
    dtypes: ClassVar[str]

    def has_views(self, shape: Sequence[int]) -> bool:
        """Return whether rows of this shape can be augmented."""
        return False

    def fits(self, row_shape: Sequence[int], shape: Sequence[int]) -> bool:
        """Return whether a row may be one of a dataset of this shape."""
        return tuple(row_shape) == tuple(shape)

    @abstractmethod
    def takes(self, dtype: np.dtype) -> bool:
        """Return whether a sample may be of a type."""

    def blank_rows(self, num_rows: int, shape: Sequence[int], dtype: str) -> MutableSequence[np.ndarray] | np.ndarray:
        """Return rows of nothing, each to be assigned by its number, or left for one that cannot be read."""
        return np.zeros((num_rows, *shape), dtype)

    def stored(self, rows: Any, dtype: str) -> Stored:
        """Return as they are stored the rows that `blank_rows` gave."""
        return np.asarray(rows, dtype)

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays of an ingest that its rows are read from."""
        return ("inputs",)

    def rows(self, arrays: Mapping[str, Stored], about: Mapping[str, Any], of: str) -> Stored:
        """Return the rows of a shard from those arrays, what its commit says, and its name for messages."""
        return arrays["inputs"]

    def fault(self, stored_S: Stored, dataset: DatasetSpec) -> str | None:
        """Return what no digest can see of the inputs of a shard, or None: values that cannot have been ingested."""
        return None

    def shown(self, stored_S: Stored, chosen_S: np.ndarray, own: OwnSize | None = None) -> Tensor:
        """Return some rows of a shard, by a mask (S,) or their numbers, as they are shown without a view, (B, …).

        Args:
            stored_S: the rows.
            chosen_S: which of them.
            own: where pictures are decoded now, another size than the dataset's; all else is resized later.
        """
        import torch

        assert isinstance(stored_S, np.ndarray)
        return torch.from_numpy(stored_S[chosen_S])

    def begun(
        self, stored_S: Stored, rows_B: np.ndarray, view: View, keys_B: NDArray[np.int64], own: OwnSize | None = None
    ) -> Tensor:
        """Return some rows of a shard, by their numbers, as what is `left` of a view begins with them."""
        return self.shown(stored_S, rows_B, own)

    def left(self, view: View) -> View:
        """Return what is to be done to rows that are `begun`."""
        return view

    def first(self, stored_S: Stored, count: int, own: OwnSize | None = None) -> Stored:
        """Return rows of which the first so many are as they are shown without a view, unreadable ones too."""
        return stored_S

    def fed(
        self,
        stored_S: Stored,
        rows_F: NDArray[np.integer],
        view: View | None = None,
        keys_F: NDArray[np.int64] | None = None,
        own: OwnSize | None = None,
    ) -> Stored | ToDecode:
        """Return rows of a shard of which those that are fed are as `begun`, or what decodes them and no others."""
        return stored_S

    def one(self, stored_S: Stored, row: int) -> np.ndarray:
        """Return one row as it is shown without a view, or its own items where it has a length of its own."""
        return stored_S[row]

    def look_at(self, stored_S: Stored) -> None:
        """Look at all rows of a shard for what only shows when they are read. Raises CorruptObject, StaleCache."""
        return

    def batches(self, shown_B: Tensor, batch_size: int) -> list[Tensor]:
        """Return the rows, by number, that a teacher is asked about together: a function of these rows alone."""
        import torch

        return list(torch.arange(len(shown_B)).split(batch_size))

    def inside(self, arguments_B: Tensor) -> Tensor | None:
        """Return which positions of a batch, (B, L) bool, are of a row and no padding; None: all."""
        return None

    def trimmed(self, shown_B: Tensor) -> Tensor:
        """Return rows without what is padding in all of them."""
        return shown_B

    def ids(self, stored: np.ndarray) -> np.ndarray:
        """Return the ids of tokens, of what is stored of some."""
        return stored

    def spread(self, arguments_B: Tensor) -> tuple[Tensor, ...]:
        """Return what `arguments` gave as the arguments that a model's `forward` has."""
        return (arguments_B,)

    def call(self, model: Any, arguments_B: Tensor) -> Any:
        """Return what a model that is not ours, or a part of it, says to what `arguments` gave."""
        return model(*self.spread(arguments_B))

    @abstractmethod
    def arguments(self, shown_B: Tensor) -> Tensor:
        """Return in one tensor what a model is called with, (B, …), of rows as they are stored or a view shows them."""

    @abstractmethod
    def blank(self, rows: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return `arguments` of nothing, (rows, *shape), to try a model on; the meta device too."""
