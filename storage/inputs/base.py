"""What every kind of inputs answers to those who build caches and train students.

Shapes: B rows; the shape of one row is the dataset's `input_shape`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # `cache status` asks which kind, and should not pay two seconds for torch
    import torch
    from torch import Tensor


class Inputs(ABC):
    """What rows are made of.

    Attributes:
        name: of the kind.
        normalised: whether a model's `mean` and `std` apply to them.
        tokenised: whether a tokenizer made them, which teacher and student must share to mean the same by an id.
        misfit_help: ends a message about samples of several shapes: what a user can do.
    """

    name: ClassVar[str]
    normalised: ClassVar[bool]
    tokenised: ClassVar[bool]
    misfit_help: ClassVar[str] = ""

    def has_views(self, shape: Sequence[int]) -> bool:
        """Return whether rows of this shape can be augmented."""
        return False

    @abstractmethod
    def arguments(self, shown_B: Tensor) -> Tensor:
        """Return what a model is called with, (B, …), of rows as they are stored or as a view shows them."""

    @abstractmethod
    def blank(self, rows: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return `arguments` of nothing, (rows, *shape), to try a model on; the meta device too."""
