"""Decode an encoded image to uint8 (C, H, W)."""

from __future__ import annotations

from io import BytesIO
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from storage.datasets.base import Source, Unreadable

MODES: dict[int, str] = {1: "L", 3: "RGB"}
DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})


class ImageSource(Source):
    """A source of encoded images.

    Attributes:
        channels: 3 for RGB, 1 for grayscale; images are converted.
        classes: their names, in the teacher's order; by default as the files have them.
        size: height and width to resize to (bilinear, antialiased), a number for a square; by default images are taken
            as they are and must all be of one size.
    """

    channels: Literal[1, 3] = 3
    classes: Annotated[list[str], Field(min_length=1)] | None = None
    size: (
        Annotated[int, Field(ge=1)]
        | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
        | None
    ) = None

    def content(self) -> dict[str, Any]:
        # One size has one fingerprint, however it is written.
        size = self.size[0] if isinstance(self.size, list) and self.size[0] == self.size[1] else self.size
        return super().content() | {"channels": self.channels, "size": size}

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, bytes)
        try:
            image = Image.open(BytesIO(payload))  # nothing to close: it reads from memory
            if image.mode in DEEP_MODES:
                raise ValueError(f"mode {image.mode} has more than 8 bits, which Pillow would clip")
            mode = MODES[self.channels]
            pixels = image if image.mode == mode else image.convert(mode)  # converting to the same mode copies
            if self.size is not None:
                height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
                if pixels.size != (width, height):
                    pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
            array_HWC = np.asarray(pixels)  # decodes, if nothing above has
        except UnidentifiedImageError:  # its own text holds a memory address, and a second ingest must write the same
            raise Unreadable(
                "UnidentifiedImageError: cannot identify image file, it is not an image that Pillow knows"
            ) from None
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more on damaged files
            raise Unreadable(f"{type(error).__name__}: {error}") from None
        return array_HWC[None] if array_HWC.ndim == 2 else array_HWC.transpose(2, 0, 1)
