"""A user's own dataset: any function that returns an object with a length and items."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from pydantic import Field, PrivateAttr

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Recorded, Source, TokenFacts, Unreadable
from storage.datasets.tokens import tokenizer_of
from storage.errors import BadRequest, LabelOutOfRange, MissingSource
from storage.language.tokenizer import TokenizerFile, read_tokenizer
from storage.options import Factory, code_fingerprint, load_factory
from storage.tasks import NO_LABEL
from storage.tasks.language_model import LanguageModel

_of_this_thread = threading.local()  # a dataset may hold open files, which two threads must not share


class FactorySource(Source):
    """`factory(**arguments)` returns a map-style dataset; it is called once in each thread that reads.

    The dataset has `len()`; item `i` is a dict with `input` (uint8 or float array), `label` (int, may be absent) and
    `id` (str, by default `ids[i]`, or else the position). An item that raises is quarantined. Attributes, all optional:

        classes: class names.
        ids: the id of each item without loading it; else an item that raises has its position for an id.
        version: str that changes whenever the data may have, such as a modification time. Without it only changes of
            the factory's own file and of the length are noticed; data that change behind them are not.
        vocabulary: a number of ids. Then items are for a language model: `input` is ids (L,), and `labels` in place of
            `label` the token to be predicted at each position, −1 for none.
        longest: tokens of the longest item, where each has a length of its own; without it all are of one length.
        tokenizer: path of the `tokenizer.json` that made the ids; teachers are checked against it.
    """

    kind: Literal["factory"]
    factory: Factory
    arguments: dict[str, Any] = Field(default_factory=dict)

    _tokenizer: TokenizerFile | None = PrivateAttr(default=None)

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

    def task_name(self) -> str:
        return LanguageModel.name if self._of_ids else super().task_name()

    def find_tokenizer(self, of: Callable[[str], bytes | None]) -> bytes | None:
        path = getattr(self._dataset(), "tokenizer", None)
        return None if path is None else read_tokenizer(Path(path)).data

    def prepared(self, tokenizer: bytes | None, recorded: Recorded) -> Self:
        copy = self.model_copy()
        if tokenizer is not None and self._of_ids:
            copy._tokenizer = tokenizer_of(self.name, tokenizer, self._number("vocabulary") or 0)  # noqa: SLF001 - its
        return copy

    def tokenizer_file(self) -> TokenizerFile | None:
        return self._tokenizer

    def tokens(self) -> TokenFacts | None:
        tokenizer = None if self._tokenizer is None else self._tokenizer.fingerprint
        return TokenFacts(self._number("vocabulary") or 0, tokenizer) if self._of_ids else None

    def longest_row(self) -> int | None:
        return self._number("longest") if self._of_ids else None

    def decode(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[0]) if self._of_ids else payload

    def decode_labels(self, payload: bytes | np.ndarray) -> np.ndarray:
        assert isinstance(payload, np.ndarray)
        return np.asarray(payload[1])

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        dataset = self._dataset()
        for i in range(position, position + rows):
            try:
                item = dataset[i]
                given, label = item.get("id"), item.get("label")
                sample = RawSample(
                    _listed_id(dataset, i) if given is None else str(given),
                    _pair(item["input"], item["labels"]) if self._of_ids else _values(item["input"]),
                    None if label is None else int(label),
                )
            except (Exception, SystemExit) as error:  # a user's own code
                sample = RawSample(_listed_id(dataset, i), Unreadable(f"{type(error).__name__}: {error}"), None)
            self._check_ids(sample)
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

    def _check_ids(self, sample: RawSample) -> None:
        """Raise LabelOutOfRange if ids are none of the vocabulary."""
        if not self._of_ids or isinstance(sample.payload, Unreadable | bytes):
            return
        vocabulary = self._number("vocabulary") or 0
        for name, ids_L, least in zip(("input", "labels"), sample.payload, (0, NO_LABEL), strict=True):
            if len(ids_L) and not least <= ids_L.min() <= ids_L.max() < vocabulary:
                raise LabelOutOfRange(
                    f"sample {sample.sample_id} has `{name}` outside the vocabulary",
                    found=f"from {ids_L.min()} to {ids_L.max()}",
                    expected=f"{least} to {vocabulary - 1}",
                    do="correct `vocabulary`, or the ids: they may be another tokenizer's",
                )

    @property
    def _of_ids(self) -> bool:
        """Whether items are of token ids, for a language model."""
        return self._number("vocabulary") is not None

    def _number(self, name: str) -> int | None:
        """Return an attribute of the dataset that is a number, one at least, or not there."""
        dataset = self._dataset()
        with self._users_code(f"cannot be asked for its {name}"):
            value = getattr(dataset, name, None)
        if value is not None and (type(value) is not int or value < 1):
            raise self._no_dataset(f"{name} = {value!r}", f"a `{name}` of 1 or more, or none")
        return value

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


def _values(given: Any) -> np.ndarray:
    """Return an item as it is stored, uint8 or float32. Raises TypeError: it is neither."""
    array = np.asarray(given)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"input is {array.dtype}, not uint8 or floats")
    return array if array.dtype == np.uint8 else array.astype(np.float32)


def _pair(ids: Any, labels: Any) -> np.ndarray:
    """Return an item for a language model, int32 (2, L). Raises TypeError, ValueError: it is none."""
    both = [np.asarray(ids), np.asarray(labels)]
    for name, values in zip(("input", "labels"), both, strict=True):
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise TypeError(f"{name} is {values.dtype} {values.shape}, not integers (L,)")
    if len(both[0]) != len(both[1]):
        raise ValueError(f"{len(both[0])} ids in input, and {len(both[1])} labels")
    return np.stack(both).astype(np.int32)


def _listed_id(dataset: Any, i: int) -> str:
    """Return the id of an item without loading it: what the dataset lists, or its position."""
    try:
        return str(dataset.ids[i])
    except (Exception, SystemExit):  # no such list, or a user's own code
        return str(i)
