"""Which way up a picture is, what lies under transparent pixels, how another shape becomes the wanted one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from storage.datasets import Unreadable

Make = Callable[..., Any]
ORIENTATION = 0x0112  # EXIF's tag
# Left black, right white, 4 wide and 2 high.
HALVES = np.repeat(np.array([[0, 0, 255, 255]], np.uint8), 2, axis=0)


def encoded(image: Image.Image, **options: Any) -> bytes:
    sink = BytesIO()
    image.save(sink, "PNG", **options)
    return sink.getvalue()


def grey(make: Make, data: bytes, **policy: Any) -> list[list[int]]:
    pixels = make(kind="image_folder", path=".", channels=1, **policy).decode(data)
    return pixels[0].tolist()  # type: ignore[no-any-return]


@pytest.fixture
def turned() -> bytes:
    """A picture that its camera held upright: stored lying on its side."""
    image = Image.fromarray(HALVES)
    exif = image.getexif()
    exif[ORIENTATION] = 6
    return encoded(image, exif=exif)


def test_a_picture_is_turned_as_its_camera_noted(source: Make, turned: bytes) -> None:
    assert grey(source, turned) == [[0, 0], [0, 0], [255, 255], [255, 255]]


def test_or_left_as_it_is_stored(source: Make, turned: bytes) -> None:
    assert grey(source, turned, orientation="stored") == HALVES.tolist()


def test_a_tiff_that_pillow_turns_by_itself_is_turned_once_or_refused_by_name(source: Make) -> None:
    sink = BytesIO()
    Image.fromarray(HALVES).save(sink, "TIFF", tiffinfo={ORIENTATION: 6})
    assert grey(source, sink.getvalue()) == [[0, 0], [0, 0], [255, 255], [255, 255]]
    with pytest.raises(Unreadable, match=r"a TIFF with an orientation, which Pillow turns"):
        grey(source, sink.getvalue(), orientation="stored")
    sink = BytesIO()
    Image.fromarray(HALVES).save(sink, "TIFF")
    assert grey(source, sink.getvalue(), orientation="stored") == HALVES.tolist()


def png_of_16_bits(colour: int, pixel: bytes) -> bytes:
    """Return a PNG of one pixel, of a type of colour and its 16-bit values, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0)
    data = zlib.compress(b"\x00" + pixel)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_colours_of_16_bits_are_taken_by_their_upper_8_and_greys_refused(source: Make) -> None:
    make = source(kind="image_folder", path=".")
    rgb = png_of_16_bits(2, bytes([10, 200, 20, 100, 30, 0]))
    assert make.decode(rgb)[:, 0, 0].tolist() == [10, 20, 30]
    with pytest.raises(Unreadable, match=r"more than 8 bits, which Pillow would clip"):
        make.decode(png_of_16_bits(0, bytes([10, 200])))


TRANSPARENT = encoded(Image.fromarray(np.array([[[10, 10, 10, 255], [10, 10, 10, 0]]], np.uint8)))


@pytest.mark.parametrize(
    ("background", "expected"), [(None, [[10, 255]]), ([7], [[10, 7]]), ("none", [[10, 10]])], ids=str
)
def test_under_transparent_pixels_lies_the_background(source: Make, background: Any, expected: list[list[int]]) -> None:
    assert grey(source, TRANSPARENT, background=background) == expected


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        ("stretch", [[0, 255], [0, 255]]),
        ("crop", [[0, 255], [0, 255]]),
        ("fit", [[0, 255], [99, 99]]),
    ],
)
def test_another_shape_becomes_the_size(source: Make, resize: str, expected: list[list[int]]) -> None:
    found = grey(source, encoded(Image.fromarray(HALVES)), size=2, resize=resize, filter="box", background=[99])
    assert found == expected


def test_what_is_cropped_is_the_middle(source: Make) -> None:
    wide = encoded(Image.fromarray(np.array([[1, 2, 3, 4, 5, 6]] * 2, np.uint8)))
    assert grey(source, wide, size=2, resize="crop") == [[3, 4], [3, 4]]


# --- what the cache is promised


def test_new_caches_promise_the_policy(source: Make) -> None:
    content = source(kind="image_folder", path=".", size=4, resize="fit").content()
    assert {key: content[key] for key in ("orientation", "background", "resize")} == {
        "orientation": "exif",
        "background": [255, 255, 255],
        "resize": "fit",
    }


def test_an_option_left_out_is_what_the_cache_has_promised(source: Make, turned: bytes) -> None:
    old = {"kind": "image_folder", "validation": 0.0, "seed": 0, "channels": 3, "size": None}
    images = source(kind="image_folder", path=".")
    assert images.content() != old
    assert images.as_promised(old).content() == old
    assert images.as_promised(images.content()).content() == images.content()


def test_an_option_that_the_job_gives_is_not_taken_back(source: Make) -> None:
    old = {"kind": "image_folder", "validation": 0.0, "seed": 0, "channels": 3, "size": None}
    assert source(kind="image_folder", path=".", orientation="exif").as_promised(old).content() != old


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "crop"}, "without `size` nothing is resized, so leave out resize"),
        ({"background": [0]}, "`background` has one number for each of the 3 channels"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(source: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source(kind="image_folder", path=".", **options)


def test_of_an_image_that_is_too_long_a_pixel_is_left(source: Make) -> None:
    line = encoded(Image.new("L", (2000, 20), 7))
    assert sorted({v for row in grey(source, line, size=32, resize="fit") for v in row}) == [7, 255]
