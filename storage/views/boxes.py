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
    sizes = []
    for i in range(BOX_AREAS):
        area = height * width * (least + (most - least) * i // (BOX_AREAS - 1))  # of 2**16
        for width_over_height in spread(*ratio, BOX_RATIOS):
            by_width = isqrt(int(area * width_over_height)) + 128 >> 8  # of 2**8, rounded
            by_height = isqrt(int(area / width_over_height)) + 128 >> 8
            if 1 <= by_height <= height and 1 <= by_width <= width:
                sizes.append([by_height, by_width])
    return np.array(sizes or [[height, width]], np.int32)  # where none fits, the whole image
