"""Small real files of every kind of source."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from storage.datasets import AnySource, RawSample, Source


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Any]:
    """Return a source as a job file gives it, with paths relative to a temporary folder."""

    def make(**options: Any) -> Source:
        return TypeAdapter(AnySource).validate_python({"name": "d"} | options, context={"folder": tmp_path})

    return make


@pytest.fixture
def read_all() -> Callable[[Source], list[RawSample]]:
    """Read every sample of a source, file by file."""

    def read(source: Source) -> list[RawSample]:
        files = source.files().select("file", "rows").iter_rows()
        if source.by_ranges:
            return [sample for file, size in files for sample in source.read_range(file, 0, size, last=True)]
        return [sample for file, rows in files for sample in source.read(file, 0, rows)]

    return read


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Return an image file: pixels (H, W) or (H, W, 3), lossless."""

    def encode(pixels: Any, mode: str | None = None, kind: str = "PNG") -> bytes:
        sink = BytesIO()
        image = Image.fromarray(np.asarray(pixels, dtype=None if mode else np.uint8))
        (image.convert(mode) if mode else image).save(sink, kind)
        return sink.getvalue()

    return encode
