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


class Dropped(Options):
    """A block that is left out: what it is given goes on as it is."""

    kind: Literal["dropped"] = "dropped"
    layer: Layer


Change = Annotated[Resized | Dropped, Field(discriminator="kind")]
