"""A multilayer perceptron over flattened inputs."""

from __future__ import annotations

import reprlib
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from storage.errors import BadRequest

MAX_DEPTH = 1024  # keeps a hostile student.json from asking for any number of layers


def mlp(
    num_classes: int, input_shape: tuple[int, ...], *, hidden: Sequence[int] = (256,), dropout: float = 0.0
) -> nn.Module:
    """Return a perceptron with ReLU; layers are named `hidden1`, `hidden2`, … and `head`.

    Args:
        hidden: width of each hidden layer; none at all gives a linear classifier.
        dropout: share of each hidden layer's units that a training step leaves out.

    Raises:
        BadRequest: it cannot be built in this size.
    """
    if len(hidden) > MAX_DEPTH or any(width < 1 for width in hidden) or not 0 <= dropout < 1:
        raise BadRequest(
            "an mlp of this size cannot be built",
            found=f"hidden = {reprlib.repr(list(hidden))}, dropout = {dropout:g}",
            expected=f"at most {MAX_DEPTH} widths of 1 or more, and a dropout in [0, 1)",
        )
    width = 1
    for size in input_shape:
        width *= size
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, next_width in enumerate(hidden, start=1):
        layers[f"hidden{number}"] = nn.Sequential(
            nn.Linear(width, next_width), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])
        )
        width = next_width
    layers["head"] = nn.Linear(width, num_classes)
    return nn.Sequential(layers)
