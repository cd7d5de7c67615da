"""What the sources of encoded images share: their policy, and whether a cache keeps them as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from storage.datasets.base import Source
from storage.inputs.policy import UNSAID, ImagePolicy


class ImageSource(ImagePolicy, Source):
    """A source of encoded images.

    Attributes:
        classes: their names, in the teacher's order; by default as the files have them.
        inputs: what the cache keeps of an image: its `pixels`, or bytes that are decoded whenever they are read.
    """

    classes: Annotated[list[str], Field(min_length=1)] | None = None
    inputs: Literal["pixels", "encoded"] = "pixels"

    @model_validator(mode="after")
    def _kept_encoded(self) -> Self:
        if self.reencode is not None and not self.encoded:
            raise ValueError('`reencode` is of images that are kept encoded: inputs = "encoded"')
        return self

    @property
    def encoded(self) -> bool:
        return self.inputs == "encoded"  # how rows are kept; to models they are pixels anyway

    def content(self) -> dict[str, Any]:
        said = {"inputs": self.inputs} if self.encoded else {}  # earlier caches keep their fingerprint
        return super().content() | self.policy() | said

    def as_promised(self, content: Mapping[str, Any]) -> Self:
        left_out = UNSAID.keys() - self.model_fields_set
        return self.model_copy(update={key: content.get(key, UNSAID[key]) for key in left_out})

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, bytes)
        return self.pixels(payload)
