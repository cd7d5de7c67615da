"""Decode an encoded image to uint8 (C, H, W), by a policy that the dataset promises.

What cameras, screens and designers leave to the viewer is decided here, by name: which way up a picture is (EXIF), what
lies under transparent pixels, how one of another shape becomes `size`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from math import prod
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import Field, model_validator

from storage.errors import Unreadable, gib
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
QUALITY = 90  # of what is encoded anew, unless a job says another

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
        reencode: of a dataset that keeps its images encoded, the format in which they are encoded anew; by default the
            bytes of the files are kept.
        quality: of that, 1 to 100.
        shorter_side: to which larger images are shrunk before; by default they become `size`.
    """

    channels: Literal[1, 3] = 3
    size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    resize: Literal["stretch", "crop", "fit"] = "stretch"
    filter: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    orientation: Literal["exif", "stored"] = "exif"
    background: list[Byte] | Literal["none"] | None = None
    reencode: Literal["jpeg", "webp"] | None = None
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    shorter_side: Side | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        unused = [key for key in ("resize", "filter") if getattr(self, key) != UNSAID[key]]
        if self.size is None and unused:
            raise ValueError(f"without `size` nothing is resized, so leave out {' and '.join(unused)}")
        unused = [key for key in ("quality", "shorter_side") if getattr(self, key) is not None]
        if self.reencode is None and unused:
            raise ValueError(f"without `reencode` nothing is encoded anew, so leave out {' and '.join(unused)}")
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
        if self.reencode is not None:
            said |= {"reencode": self.reencode, "quality": self.quality or QUALITY, "shorter_side": self.shorter_side}
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
        with _unreadable():
            return self.sized(self._opened(payload if self.reencode is None else self.kept(payload)))

    def picture(self, image: Image.Image) -> Image.Image:
        """Return what one of kept bytes shows, decoded and the way up, before it becomes `size`. Raises Unreadable."""
        with _unreadable():
            picture = self._shown(image, ours=True)
            picture.load()
            return picture

    def sized(self, picture: Image.Image, pixels_HWC: np.ndarray | None = None) -> np.ndarray:
        """Return a picture, or a part of one, as a row of the dataset, uint8 (C, H, W).

        Args:
            picture: as the policy shows it.
            pixels_HWC: its own, where they are known: to take them out of Pillow is a fifth of decoding.
        """
        if self.size is not None:
            height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
            if picture.size != (width, height):
                picture, pixels_HWC = self._resized(picture, width, height), None
        array_HWC = np.asarray(picture) if pixels_HWC is None else pixels_HWC  # decodes, if nothing before has
        return array_HWC[None] if array_HWC.ndim == 2 else array_HWC.transpose(2, 0, 1)

    def stretched(self, picture: Image.Image) -> np.ndarray:
        """Return a part of a picture, stretched to `size`, uint8 (C, H, W)."""
        return self.model_copy(update={"resize": "stretch"}).sized(picture)

    def kept(self, payload: bytes | Image.Image) -> bytes:
        """Return the bytes that a dataset keeps of an image: those of its file, or encoded anew. Raises Unreadable."""
        if self.reencode is None:
            assert isinstance(payload, bytes)
            return payload
        with _unreadable():
            picture = self._opened(payload)
            if self.shorter_side is None:
                array_CHW = self.sized(picture)
                picture = Image.fromarray(array_CHW[0] if self.channels == 1 else array_CHW.transpose(1, 2, 0))
            elif min(picture.size) > self.shorter_side:
                picture = picture.resize(_shrunk(picture.size, self.shorter_side), FILTERS[self.filter])
            buffer = BytesIO()
            picture.save(buffer, self.reencode.upper(), quality=self.quality or QUALITY)
            return buffer.getvalue()

    @staticmethod
    def opened(kept: bytes) -> Image.Image:
        """Return an image of which only the header was read yet. Raises Unreadable."""
        with _unreadable():
            return Image.open(BytesIO(kept))

    def _opened(self, payload: bytes | Image.Image) -> Image.Image:
        """Return an image as the policy shows it, before it is resized; it may not be decoded yet."""
        ours = isinstance(payload, bytes)
        return self._shown(Image.open(BytesIO(payload)) if isinstance(payload, bytes) else payload, ours=ours)

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
        return image if image.mode == mode else image.convert(mode)  # converting to the same mode copies

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


@contextmanager
def _unreadable() -> Iterator[None]:
    """Raise Unreadable, with a reason that is the same each time, for whatever Pillow raises within."""
    try:
        yield
    except Unreadable:
        raise
    except UnidentifiedImageError:  # its own text holds a memory address, and a second ingest must write the same
        raise Unreadable(
            "UnidentifiedImageError: cannot identify image file, it is not an image that Pillow knows"
        ) from None
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError and more on damaged files
        raise Unreadable(f"{type(error).__name__}: {error}") from None


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


def _shrunk(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return (width, height) of an image whose shorter side is shrunk to so much.

    >>> _shrunk((200, 100), 50), _shrunk((60, 200), 30)
    ((100, 50), (30, 100))
    """
    across, down = size
    if across < down:
        return shorter, round(down * shorter / across)
    return round(across * shorter / down), shorter
