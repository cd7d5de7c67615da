"""What a row is made of: one file per kind. The only place that knows the kinds; what is asked of a row is in `tasks`.

    base.py     what every kind answers
    pixels.py   uint8, scaled to [0, 1]; the kind that has views
    tokens.py   ids of a vocabulary, int32
    texts.py    that, each row at its own length: a model is given ids and a mask
    values.py   float32, as they are

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


def inputs_of(dataset: DatasetSpec) -> Inputs:
    """Return what the rows of a dataset are made of, by what it promises: a vocabulary, or the dtype of its inputs."""
    if dataset.vocabulary is not None:  # where kinds are told apart: everybody else asks the kind
        return INPUTS["texts" if dataset.own_length else "tokens"]
    return INPUTS["pixels" if dataset.input_dtype == "uint8" else "values"]


__all__ = ["INPUTS", "Inputs", "Stored", "inputs_of"]
