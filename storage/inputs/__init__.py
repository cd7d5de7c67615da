"""What a row is made of: one file per kind. The only place that knows the kinds; what is asked of a row is in `tasks`.

    base.py     what every kind answers
    pixels.py   uint8, scaled to [0, 1]; the kind that has views
    tokens.py   ids of a vocabulary, int32
    texts.py    that, each row at its own length: a model is given ids and a mask
    values.py   float32, as they are
    arguments.py   what a model is called with
    ragged.py   rows of their own length in memory: flat, beside where each ends

A new kind is one file and one line of the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.inputs.base import Inputs, Stored
from storage.inputs.pixels import Pixels
from storage.inputs.texts import Texts
from storage.inputs.tokens import Tokens
from storage.inputs.values import Values

if TYPE_CHECKING:
    from storage.format.specs import DatasetSpec

INPUTS: dict[str, Inputs] = {"pixels": Pixels(), "tokens": Tokens(), "texts": Texts(), "values": Values()}


def find_inputs(vocabulary: int | None, input_dtype: str, *, own_length: bool) -> Inputs:
    """Return what rows are made of, of which a dataset promises this."""
    if vocabulary is not None:  # where kinds are told apart: everybody else asks the kind
        return INPUTS["texts" if own_length else "tokens"]
    return INPUTS["pixels" if input_dtype == "uint8" else "values"]  # likewise


def inputs_of(dataset: DatasetSpec) -> Inputs:
    """Return what the rows of a dataset are made of."""
    return find_inputs(dataset.vocabulary, dataset.input_dtype, own_length=dataset.own_length)


__all__ = ["INPUTS", "Inputs", "Stored", "find_inputs", "inputs_of"]
