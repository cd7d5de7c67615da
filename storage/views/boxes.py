"""The boxes of a random-resized crop: which there are in an image of a size, and which one a sample's dice choose."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.views.numbers import spread
from storage.views.options import RandomResizedCrop

BOX_AREAS, BOX_RATIOS = 64, 32  # sizes that a random-resized crop chooses among
UNSURE = 1e-6  # of a pixel: floats are off by a thousandth of it, and what is so near is computed in integers


class Boxes(NamedTuple):
    """The dice of a crop for some samples, 32 bits each, whose pictures may be of any size."""

    options: RandomResizedCrop
    size_B: Sequence[int]
    top_B: Sequence[int]
    left_B: Sequence[int]

    def of(self, place: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of one sample's box in its picture."""
        sizes = box_sizes(height, width, self.options.scale, self.options.ratio)
        box_height, box_width = sizes[self.size_B[place] * len(sizes) >> 32].tolist()
        top = self.top_B[place] * (height - box_height + 1) >> 32
        left = self.left_B[place] * (width - box_width + 1) >> 32
        return left, top, left + box_width, top + box_height


@lru_cache(maxsize=1024)  # pictures of many sizes, 16 kB each
def box_sizes(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]) -> NDArray[np.int32]:
    """Return [height, width] of boxes: areas evenly from `scale`, ratios evenly in their logarithm; all that fit."""
    least, most = (round(share * 2**16) for share in scale)
    shares = [least + (most - least) * i // (BOX_AREAS - 1) for i in range(BOX_AREAS)]
    areas = np.repeat(np.array(shares) * (height * width), BOX_RATIOS)  # of 2**16
    ratios = _ratios(ratio)
    by_height, by_width = _sides(areas / ratios), _sides(areas * ratios)
    for place in np.flatnonzero(np.isnan(by_height) | np.isnan(by_width)):
        width_over_height = spread(*ratio, BOX_RATIOS)[place % BOX_RATIOS]
        area = int(areas[place])
        by_height[place] = isqrt(int(area / width_over_height)) + 128 >> 8
        by_width[place] = isqrt(int(area * width_over_height)) + 128 >> 8
    fits = (by_height >= 1) & (by_height <= height) & (by_width >= 1) & (by_width <= width)
    sizes = np.stack([by_height, by_width], 1)[fits].astype(np.int32)
    return sizes if len(sizes) else np.array([[height, width]], np.int32)  # where none fits, the whole image


@lru_cache
def _ratios(ratio: tuple[float, float]) -> NDArray[np.float64]:
    """Return the ratio of each box of a table, as near as floats are."""
    return np.tile(np.array(spread(*ratio, BOX_RATIOS), float), BOX_AREAS)


def _sides(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return roots of areas in units of 2**-16, rounded to whole pixels; NaN where a float cannot tell which it is."""
    sides = (np.sqrt(squares) + 128) / 256
    return np.where(np.abs(sides - np.rint(sides)) < UNSURE, np.nan, np.floor(sides))
