"""What a row is made of: one file per kind. What is asked of a row is in `tasks`.

    kinds.py      the table, and of which kind the rows of a dataset are: the only place where kinds are told apart
    base.py       what every kind answers
    pixels.py     uint8, scaled to [0, 1]; the kind that has views
    encoded.py    that, kept as the bytes of images, decoded whenever they are read
    tokens.py     ids of a vocabulary, int32
    texts.py      that, each row at its own length: a model is given ids and a mask
    sequences.py  that, read from the front: a model is given ids alone
    packed.py     that, several documents in a row: a model is given ids and positions
    values.py     float32, as they are

and what these need:

    policy.py     how an image becomes a row: what is left to viewers, decided by name
    columns.py    what the places of a table's rows mean
    ragged.py     rows of their own length in memory: flat, beside where each ends
    arguments.py  what a model is called with

A new kind is one file like pixels.py and one line of the table.
"""

from storage.inputs.base import Inputs, Stored
from storage.inputs.kinds import INPUTS, find_inputs, inputs_of

__all__ = ["INPUTS", "Inputs", "Stored", "find_inputs", "inputs_of"]
