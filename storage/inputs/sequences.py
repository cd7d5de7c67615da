"""Sequences: rows of token ids, each at its own length, that are read from the front. B rows of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.inputs.texts import Texts

if TYPE_CHECKING:
    from torch import Tensor


class Sequences(Texts):
    """Stored as texts are; a model is given ids alone.

    No position looks at what follows it: what is behind a row, the id 0, nobody sees who is asked for anything.
    """

    name = "sequences"

    def spread(self, arguments_B: Tensor) -> tuple[Tensor, ...]:
        return (arguments_B.clamp(min=0),)
