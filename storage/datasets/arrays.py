"""NumPy files: inputs in one array, labels in another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from storage.datasets.base import FILE_SCHEMA, LocalFile, RawSample, Source, classes_up_to
from storage.errors import MissingSource, StillroomError
from storage.format.stores.mirror import SourcePath

EXACT = 2**24  # up to which float32 has every integer


class ArraysSource(Source):
    """Inputs of any shape, uint8, or floating or other integers (kept as float32).

    Attributes:
        path: a .npy file of inputs, or a .npz with `inputs` and `labels`.
        labels: a .npy file of labels beside a .npy of inputs; without it the dataset is unlabelled.
        inputs_key, labels_key: names of the arrays in a .npz.
        classes: class names, also of an unlabelled dataset, for its teachers; by default the numbers up to the largest
            label.
    """

    kind: Literal["arrays"]
    path: SourcePath
    labels: SourcePath | None = None
    inputs_key: str = "inputs"
    labels_key: str = "labels"
    classes: list[str] | None = None

    def files(self) -> pl.DataFrame:
        inputs, _ = self._load()
        row = (self.path.name, *self.look_at(self.path.name), len(inputs))
        return pl.DataFrame([row], schema=FILE_SCHEMA, orient="row")

    def look_at(self, file: str) -> LocalFile:
        return LocalFile.of_all(path for path in (self.path, self.labels) if path is not None)

    def class_names(self) -> list[str]:
        if self.classes:
            return self.classes
        _, labels = self._load()
        # initial: there may be no row
        return [] if labels is None else classes_up_to(int(labels.max(initial=0)), str(self.labels or self.path))

    def read(self, file: str, position: int, rows: int) -> Iterator[RawSample]:
        inputs, labels = self._load()
        for i in range(position, position + rows):
            array = np.asarray(inputs[i])
            payload = array if array.dtype == np.uint8 else _floats(array, self.path, i)
            yield RawSample(f"{file}:{i}", payload, None if labels is None else int(labels[i]))

    def buffer_bytes(self) -> int:
        return 0 if self.path.suffix == ".npy" else self._load()[0].nbytes  # .npy is mapped, .npz is read whole

    def content(self) -> dict[str, Any]:
        return super().content() | {"inputs_key": self.inputs_key, "labels_key": self.labels_key}

    def _load(self) -> tuple[np.ndarray, np.ndarray | None]:
        version = LocalFile.of(self.path).version  # so that a file that has changed is loaded again
        inputs = _load_numpy(self.path, version, self.inputs_key)
        labels = None
        if self.labels is not None:
            labels = _load_numpy(self.labels, LocalFile.of(self.labels).version, self.labels_key)
        elif self.labels_key in _keys(self.path):
            labels = _load_numpy(self.path, version, self.labels_key)
        wide = inputs.ndim > 1 or inputs.dtype.kind not in "iu"  # one whole number for each row is a label
        if inputs.ndim == 0 or not (inputs.dtype == np.uint8 or (wide and inputs.dtype.kind in "fiu")):
            raise MissingSource(
                f"{self.path} holds no inputs",
                found=f"{inputs.dtype} {inputs.shape}",
                expected="uint8, floats or integers, (rows, …); not a label for each row",
            )
        if labels is not None and (not np.issubdtype(labels.dtype, np.integer) or labels.shape != inputs.shape[:1]):
            raise MissingSource(
                f"the labels of {self.path} do not fit its inputs",
                found=f"{labels.dtype} {labels.shape}",
                expected=f"integers ({len(inputs)},)",
            )
        return inputs, labels


def _floats(values: np.ndarray, path: Path, row: int) -> np.ndarray:
    """Return a row as float32. Raises MissingSource: it has integers that float32 cannot hold."""
    floats = values.astype(np.float32)
    if values.dtype.kind in "iu" and np.abs(values.astype(np.float64)).max(initial=0) > EXACT:
        raise MissingSource(
            f"{path} holds integers that float32 cannot tell apart",
            found=f"{values.flat[np.abs(values.astype(np.float64)).argmax()]} in row {row}",
            expected=f"numbers up to {EXACT:,}; ids of words, of a `tokens` dataset",
        )
    return floats


def _keys(path: Path) -> list[str]:
    """Return the names of the arrays of a .npz; a .npy has none."""
    with _opened(path) as loaded:
        return [] if isinstance(loaded, np.ndarray) else list(loaded.files)


@lru_cache(maxsize=4)  # each shard would decompress the .npz again
def _load_numpy(path: Path, version: str, key: str) -> np.ndarray:
    with _opened(path) as loaded:
        if isinstance(loaded, np.ndarray):
            return loaded
        if key in loaded:
            return np.asarray(loaded[key])
        raise MissingSource(f"{path} has no array {key}", found=", ".join(loaded), do="set inputs_key or labels_key")


def load_numpy(path: Path) -> np.ndarray:
    """Return the array of a .npy, still on the disk. Raises MissingSource."""
    with _opened(path) as loaded:
        if isinstance(loaded, np.ndarray):
            return loaded
    raise MissingSource(f"{path} holds several arrays", found=".npz", expected=".npy")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yield the array of a .npy, or an open .npz."""
    try:
        with open(path, "rb") as file:  # by ourselves: NumPy leaves a broken .npz open
            if file.read(2) != b"PK":  # a .npz is a zip, whatever it is called
                yield np.load(path, mmap_mode="r", allow_pickle=False)  # a pickle could execute code
            else:
                file.seek(0)
                with np.load(file, allow_pickle=False) as loaded:
                    yield loaded
    except StillroomError:
        raise
    except Exception as error:  # NumPy reads a header by Python's own parser, which has errors of its own
        raise MissingSource(
            f"cannot read {path} as .npy or .npz", found=str(error)[:200] or type(error).__name__
        ) from None
