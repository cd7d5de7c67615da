"""The kinds of rows, and of which a dataset's are: here kinds are told apart.

Everybody else asks the kind what it is like (`base.py`: `tokenised`, which tokens and texts are, `own_length`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.inputs.base import Inputs
from storage.inputs.encoded import Encoded
from storage.inputs.packed import Packed
from storage.inputs.pixels import Pixels
from storage.inputs.sequences import Sequences
from storage.inputs.texts import Texts
from storage.inputs.tokens import Tokens
from storage.inputs.values import Values

if TYPE_CHECKING:
    from storage.format.specs import DatasetSpec

INPUTS: dict[str, Inputs] = {kind.name: kind for kind in (Pixels(), Tokens(), Texts(), Sequences(), Packed(), Values())}
# tasks whose models look at all of a row at once; others see what came before
READ_WHOLE = ("text_classification", "vector")


def find_inputs(
    vocabulary: int | None, input_dtype: str, *, own_length: bool, packed: bool = False, task: str | None = None
) -> Inputs:
    """Return what rows are made of, of which a dataset promises this; `task` None: what is implied of tokens."""
    if packed:
        return INPUTS["packed"]
    if vocabulary is not None:  # ids of tokens
        return INPUTS["tokens" if not own_length else "texts" if task in READ_WHOLE else "sequences"]
    return INPUTS["pixels" if input_dtype == "uint8" else "values"]  # pixels are bytes, values are floats


def inputs_of(dataset: DatasetSpec) -> Inputs:
    """Return what the rows of a dataset are made of."""
    if dataset.encoded:
        return Encoded(dataset.source, dataset.input_shape)
    return find_inputs(
        dataset.vocabulary,
        dataset.input_dtype,
        own_length=dataset.own_length,
        packed=dataset.packed,
        task=dataset.task,
    )
