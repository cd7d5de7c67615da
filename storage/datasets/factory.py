"""A user's own dataset: any function that returns an object with a length and items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from storage.datasets.base import FILE_SCHEMA, RawSample, Source, Unreadable
from storage.errors import BadRequest, MissingSource
from storage.options import Factory, code_fingerprint, load_factory


class FactorySource(Source):
    """`factory(**arguments)` returns a map-style dataset.

    It has `len()`; item `i` is a dict with `input` (uint8 or float array), `label` (int, may be absent) and `id` (str,
    by default the position). An attribute `classes` lists class names. An item that raises is quarantined.
    """

    kind: Literal["factory"]
    factory: Factory
    arguments: dict[str, Any] = Field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        function = self.factory.rpartition(":")[2]
        return super().content() | {
            "function": function,
            "arguments": self.arguments,
            "code": code_fingerprint(self.factory),
        }

    def files(self) -> pl.DataFrame:
        row = ("factory", 0, code_fingerprint(self.factory), len(self._dataset()))
        return pl.DataFrame([row], schema=FILE_SCHEMA, orient="row")

    def class_names(self) -> list[str]:
        return [str(name) for name in getattr(self._dataset(), "classes", [])]

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        dataset = self._dataset()
        for i in range(position, position + rows):
            try:
                item = dataset[i]
                array = np.asarray(item["input"])
                if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
                    raise TypeError(f"input is {array.dtype}, not uint8 or floats")
                payload = array if array.dtype == np.uint8 else array.astype(np.float32)
                label = item.get("label")
                yield RawSample(str(item.get("id", i)), payload, None if label is None else int(label))
            except Exception as error:  # a user's own code
                yield RawSample(str(i), Unreadable(f"{type(error).__name__}: {error}"), None)

    def _dataset(self) -> Any:
        factory = load_factory(self.factory)
        try:
            dataset = factory(**self.arguments)
        except Exception as error:  # a user's own code
            raise BadRequest(
                f"{self.factory} failed", found=f"{type(error).__name__}: {error}", do="look at `arguments` in the job"
            ) from error
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise MissingSource(
                f"{self.factory} did not return a dataset",
                found=type(dataset).__name__,
                expected="an object with __len__ and __getitem__",
            )
        return dataset
