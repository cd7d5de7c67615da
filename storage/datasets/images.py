"""Decode an encoded image to uint8 (C, H, W), by a policy that the dataset promises.

What cameras, screens and designers leave to the viewer is decided here, by name: which way up a picture is (EXIF), what
lies under transparent pixels, how one of another shape becomes `size`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from io import BytesIO
from math import prod
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field, model_validator

from storage.datasets.base import Source, Unreadable
from storage.errors import gib
from storage.options import Options

# Of images of 90 million pixels; those of twice as many Pillow refuses, and so do we, with their sample's name.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

MODES: dict[int, str] = {1: "L", 3: "RGB"}  # Pillow's name by number of channels
DEEP_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})  # more than 8 bits a value
TRANSPARENT_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})  # La, RGBa: with the alpha multiplied in
ORIENTATION = 0x0112  # EXIF's tag
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# What builds did before these could be said; a cache that promises nothing of them was made so.
UNSAID: dict[str, Any] = {"orientation": "stored", "background": "none", "resize": "stretch", "filter": "bilinear"}

MOST_ROW_BYTES = 2**28  # of one image: 9,459 pixels a side in three colours

Side = Annotated[int, Field(ge=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


class ImagePolicy(Options):
    """How an image becomes a row: what a dataset promises, and a student keeps for whoever predicts with it.

    Attributes:
        channels: 3 for RGB, 1 for grayscale; images are converted.
        size: height and width to resize to, a number for a square; by default images are taken as they are and must all
            be of one size.
        resize: how an image of another shape becomes `size`: `stretch` both sides; `crop` what is over in the middle,
            after the shorter side fits; `fit` the longer side, with `background` around.
        filter: of resizing, antialiased.
        orientation: `exif` turns a picture the way up that its camera noted; `stored` leaves it.
        background: colour under transparent pixels and around images that `fit`, a number a channel, by default white;
            `none` shows the colours that transparent pixels hide, and black around.
    """

    channels: Literal[1, 3] = 3
    size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    resize: Literal["stretch", "crop", "fit"] = "stretch"
    filter: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    orientation: Literal["exif", "stored"] = "exif"
    background: list[Byte] | Literal["none"] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        unused = [key for key in ("resize", "filter") if getattr(self, key) != UNSAID[key]]
        if self.size is None and unused:
            raise ValueError(f"without `size` nothing is resized, so leave out {' and '.join(unused)}")
        row_bytes = prod(self.shape((0, 1, 1)))
        if row_bytes > MOST_ROW_BYTES:
            raise ValueError(
                f"`size` makes a row of {gib(row_bytes)}, which no machine decodes by the hundred; "
                f"at most {gib(MOST_ROW_BYTES)} (found {self.size})"
            )
        if isinstance(self.background, list) and len(self.background) != self.channels:
            raise ValueError(f"`background` has one number for each of the {self.channels} channels")
        return self

    @classmethod
    def promised(cls, content: Mapping[str, Any]) -> Self:
        """Return the policy of a dataset's `content`."""
        return cls.model_validate({key: content.get(key, UNSAID.get(key)) for key in ImagePolicy.model_fields})

    def policy(self) -> dict[str, Any]:
        """Return what decides the pixels, as a dataset promises it."""
        # One size has one fingerprint, however it is written.
        size = self.size[0] if isinstance(self.size, list) and self.size[0] == self.size[1] else self.size
        # the colour that is used, not that none was named
        policy = {key: getattr(self, key) for key in UNSAID} | {"background": self._under()}
        # what is as it always was goes unsaid: earlier caches keep their fingerprint
        said = {key: value for key, value in policy.items() if value != UNSAID[key]}
        return {"channels": self.channels, "size": size} | said

    def shape(self, otherwise: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of every image's pixels, (C, H, W); of no `size` the sides are those of another shape."""
        if self.size is None:
            return (self.channels, *otherwise[1:])
        sides = [self.size, self.size] if isinstance(self.size, int) else self.size
        return (self.channels, *sides)

    def pixels(self, payload: bytes | Image.Image) -> np.ndarray:
        """Return the pixels of an image, uint8 (C, H, W): of a file's bytes, or as Pillow opened it.

        Raises:
            Unreadable: Pillow cannot decode it.
        """
        try:
            ours = isinstance(payload, bytes)
            image = Image.open(BytesIO(payload)) if isinstance(payload, bytes) else payload
            array_HWC = np.asarray(self._shown(image, ours=ours))  # decodes, if nothing before has
        except UnidentifiedImageError:  # its own text holds a memory address, and a second ingest must write the same
            raise Unreadable(
                "UnidentifiedImageError: cannot identify image file, it is not an image that Pillow knows"
            ) from None
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more on damaged files
            raise Unreadable(f"{type(error).__name__}: {error}") from None
        return array_HWC[None] if array_HWC.ndim == 2 else array_HWC.transpose(2, 0, 1)

    def _shown(self, image: Image.Image, *, ours: bool) -> Image.Image:
        """Return an image as the policy shows it; nothing of ours is to be closed: it reads from memory."""
        if not ours and image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) != 1:
            raise ValueError("a TIFF with an orientation, which Pillow turns by itself; give its bytes")
        if image.mode in DEEP_MODES:
            raise ValueError(f"mode {image.mode} has more than 8 bits, which Pillow would clip")
        if self.orientation == "exif":
            if ours:
                ImageOps.exif_transpose(image, in_place=True)  # no copy
            else:
                image = ImageOps.exif_transpose(image)
        elif image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) != 1:
            raise ValueError('a TIFF with an orientation, which Pillow turns; orientation = "exif", or save it turned')
        mode, under = MODES[self.channels], self._under()
        # a palette may have one colour that is transparent
        if isinstance(under, list) and (image.mode in TRANSPARENT_MODES or "transparency" in image.info):
            # alpha_composite takes RGBA alone
            image = Image.alpha_composite(_plain(mode, image.size, under).convert("RGBA"), image.convert("RGBA"))
        pixels = image if image.mode == mode else image.convert(mode)  # converting to the same mode copies
        if self.size is None:
            return pixels
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return pixels if pixels.size == (width, height) else self._resized(pixels, width, height)

    def _resized(self, pixels: Image.Image, width: int, height: int) -> Image.Image:
        method = FILTERS[self.filter]
        if self.resize == "stretch":
            return pixels.resize((width, height), method)
        if self.resize == "crop":
            return ImageOps.fit(pixels, (width, height), method)
        inside, under = pixels.resize(_contained(pixels.size, width, height), method), self._under()
        frame = _plain(pixels.mode, (width, height), under if isinstance(under, list) else [0] * self.channels)
        frame.paste(inside, ((width - inside.width) // 2, (height - inside.height) // 2))
        return frame

    def _under(self) -> list[int] | str:
        return [255] * self.channels if self.background is None else self.background


class ImageSource(ImagePolicy, Source):
    """A source of encoded images.

    Attributes:
        classes: their names, in the teacher's order; by default as the files have them.
    """

    classes: Annotated[list[str], Field(min_length=1)] | None = None

    def content(self) -> dict[str, Any]:
        return super().content() | self.policy()

    def as_promised(self, content: Mapping[str, Any]) -> Self:
        left_out = UNSAID.keys() - self.model_fields_set
        return self.model_copy(update={key: content.get(key, UNSAID[key]) for key in left_out})

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, bytes)
        return self.pixels(payload)


def _plain(mode: str, size: tuple[int, int], colour: list[int]) -> Image.Image:
    return Image.new(mode, size, colour[0] if len(colour) == 1 else tuple(colour))


def _contained(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Return (width, height) of an image whose longer side fits, and of whose shorter side at least a pixel is left.

    >>> _contained((200, 100), 32, 32), _contained((30, 60), 32, 32), _contained((2000, 20), 32, 32)
    ((32, 16), (16, 32), (32, 1))
    """
    across, down = size
    if across * height > down * width:
        return width, max(1, round(down * width / across))
    return max(1, round(across * height / down)), height
