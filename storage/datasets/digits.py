"""scikit-learn's 1,797 real handwritten digits, 8 by 8, for demonstrations without any file. Extra: digits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal

import numpy as np
import polars as pl

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Source
from storage.errors import missing_extra

NUM_ROWS = 1797  # told without importing scikit-learn
MAX_VALUE = 16  # of a pixel, as scikit-learn has them


class DigitsSource(Source):
    """Inputs are uint8 (1, 8, 8); the original 0 to 16 scaled to 0 to 255."""

    kind: Literal["digits"]

    def files(self) -> pl.DataFrame:
        if find_spec("sklearn") is None:
            raise missing_extra('kind = "digits"', "no scikit-learn", "digits")
        return pl.DataFrame([("digits", *self.look_at("digits"), NUM_ROWS)], schema=FILE_SCHEMA, orient="row")

    def look_at(self, file: str) -> LocalFile:
        return LocalFile(0, version("scikit-learn"))  # asked of the metadata: importing it takes over a second

    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(10)]

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        pixels, labels = _digits()
        for i in range(position, position + rows):
            yield RawSample(f"digits:{i}", pixels[i], int(labels[i]))


@cache  # 115 kB, which to take apart takes longer than any teacher of them
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Return pixels, uint8 (rows, 1, 8, 8), and labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / MAX_VALUE)).astype(np.uint8)[:, None]
    pixels.flags.writeable = False  # all who read them share them
    return pixels, bunch.target
