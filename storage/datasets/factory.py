"""A user's own dataset: any function that returns an object with a length and items."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Source, Unreadable
from storage.errors import BadRequest, MissingSource
from storage.options import Factory, code_fingerprint, load_factory

_of_this_thread = threading.local()  # a dataset may hold open files, which two threads must not share


class FactorySource(Source):
    """`factory(**arguments)` returns a map-style dataset; it is called once in each thread that reads.

    The dataset has `len()`; item `i` is a dict with `input` (uint8 or float array), `label` (int, may be absent) and
    `id` (str, by default `ids[i]`, or else the position). An item that raises is quarantined. Attributes, all optional:

        classes: class names.
        ids: the id of each item without loading it; else an item that raises has its position for an id.
        version: str that changes whenever the data may have, such as a modification time. Without it only changes of
            the factory's own file and of the length are noticed; data that change behind them are not.
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
        dataset = self._dataset()
        with self._users_code("cannot be asked for its length and version"):
            rows = len(dataset)
        return pl.DataFrame([("factory", *self.look_at("factory"), rows)], schema=FILE_SCHEMA, orient="row")

    def look_at(self, file: str) -> LocalFile:
        dataset, version = self._dataset(), code_fingerprint(self.factory)
        with self._users_code("cannot be asked for its length and version"):
            own_version = getattr(dataset, "version", None)
        if own_version is None:
            return LocalFile(0, version)
        if not isinstance(own_version, str):
            raise self._no_dataset(f"version = {own_version!r}", "a `version` that is a string, or none")
        return LocalFile(0, f"{version}+{own_version}")

    def check_unchanged(self, file: str, size: int, version: str) -> None:
        if self.look_at(file) != (size, version):  # what a worker has made for a job before may be of an older version
            vars(_of_this_thread).pop(self._key, None)
        super().check_unchanged(file, size, version)

    def class_names(self) -> list[str]:
        dataset = self._dataset()
        with self._users_code("cannot be asked for its classes"):
            classes: Any = getattr(dataset, "classes", None)
            # a string is left whole, to be refused: its letters are no classes
            names = classes if isinstance(classes, str) or not hasattr(classes, "__iter__") else list(classes)
        if names is None:
            return []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self._no_dataset(f"classes = {classes!r}", "`classes` that are a list of strings, or none")
        return [str(name) for name in names]

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        dataset = self._dataset()
        for i in range(position, position + rows):
            try:
                item = dataset[i]
                array = np.asarray(item["input"])
                if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
                    raise TypeError(f"input is {array.dtype}, not uint8 or floats")
                payload = array if array.dtype == np.uint8 else array.astype(np.float32)
                given, label = item.get("id"), item.get("label")
                sample = RawSample(
                    _listed_id(dataset, i) if given is None else str(given),
                    payload,
                    None if label is None else int(label),
                )
            except (Exception, SystemExit) as error:  # a user's own code
                sample = RawSample(_listed_id(dataset, i), Unreadable(f"{type(error).__name__}: {error}"), None)
            yield sample

    @property
    def _key(self) -> str:
        arguments = json.dumps(self.arguments, sort_keys=True, default=str)  # default: TOML has dates, JSON has none
        return f"{self.factory} {code_fingerprint(self.factory)} {arguments}"

    def _dataset(self) -> Any:
        """Return what the factory made for this thread, or makes now."""
        made, key = vars(_of_this_thread), self._key
        if key in made:
            return made[key]
        factory = load_factory(self.factory)
        with self._users_code("failed"):
            dataset = factory(**self.arguments)
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise MissingSource(
                f"{self.factory} did not return a dataset",
                found=type(dataset).__name__,
                expected="an object with __len__ and __getitem__",
            )
        return made.setdefault(key, dataset)

    @contextlib.contextmanager
    def _users_code(self, failure: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:  # a user's own code
            raise BadRequest(
                f"{self.factory} {failure}",
                found=f"{type(error).__name__}: {error}",
                do="look at `arguments` in the job",
            ) from error

    def _no_dataset(self, found: str, expected: str) -> MissingSource:
        return MissingSource(f"{self.factory} did not return a dataset", found=found, expected=expected)


def _listed_id(dataset: Any, i: int) -> str:
    """Return the id of an item without loading it: what the dataset lists, or its position."""
    try:
        return str(dataset.ids[i])
    except (Exception, SystemExit):  # no such list, or a user's own code
        return str(i)
