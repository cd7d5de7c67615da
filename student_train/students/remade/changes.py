"""What a blueprint says of layers that are other than its architecture builds them: data, without torch.

They are made in order, so that a layer which was resized can be factorised next. None makes a layer larger than its
architecture does: a damaged or hostile file cannot ask for memory.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from storage.options import Options

Layer = Annotated[str, Field(min_length=1)]
Size = Annotated[int, Field(ge=1)]
Per = Literal["channel", "tensor"]


class Resized(Options):
    """A layer of fewer units.

    Attributes:
        layer: its name in the network.
        shape: of its weight, or of its running mean where it has none: (out, in, …) of a convolution or a linear layer,
            (channels,) of a norm.
    """

    kind: Literal["resized"] = "resized"
    layer: Layer
    shape: Annotated[tuple[Size, ...], Field(strict=False, min_length=1)]


class Heads(Options):
    """An attention layer of fewer heads, as wide as they were each; its two layers are resized beside."""

    kind: Literal["heads"] = "heads"
    layer: Layer
    heads: Size


class Dropped(Options):
    """A block that is left out: what it is given goes on as it is."""

    kind: Literal["dropped"] = "dropped"
    layer: Layer


class Factored(Options):
    """A linear layer, a convolution or an embedding as two, `first` and `second`, with fewer units between them.

    Attributes:
        rank: how many.
    """

    kind: Literal["factored"] = "factored"
    layer: Layer
    rank: Size


class Int8(Options):
    """A linear layer or a convolution with weights that are codes from -127 to 127, of inputs rounded to 256 numbers.

    Attributes:
        per: whether each output has a step of its own, or the weights one for all.
        trained: whether weights are still floats, which are rounded anew in each pass.
    """

    kind: Literal["int8"] = "int8"
    layer: Layer
    per: Per = "channel"
    trained: bool = False


Change = Annotated[Resized | Heads | Dropped | Factored | Int8, Field(discriminator="kind")]
