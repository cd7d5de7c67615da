"""Labels of rows out of the sample table: a class, or numbers. N rows, T numbers of one."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from storage.format.specs import DatasetSpec
from storage.tasks import NO_LABEL, task_of
from storage.tasks.base import TARGET


def labels_of(dataset: DatasetSpec, samples: pl.DataFrame) -> NDArray[np.int64] | NDArray[np.float32]:
    """Return the label of each row: its class, int64 (N,), or NO_LABEL; or its numbers, float32 (N, T), or NaN."""
    return _numbers(samples[TARGET]) if task_of(dataset).numbers else classes_of(samples["label"])


def has_label(dataset: DatasetSpec, labels_N: NDArray[np.int64] | NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which rows have a label, (N,)."""
    if task_of(dataset).numbers:
        return np.asarray(np.isfinite(labels_N).all(axis=1))
    return np.asarray(labels_N > NO_LABEL)


def classes_of(column: pl.Series) -> NDArray[np.int64]:
    """Return classes, (N,), NO_LABEL where there is none."""
    return column.cast(pl.Int64).fill_null(NO_LABEL).to_numpy().astype(np.int64)


def _numbers(column: pl.Series) -> NDArray[np.float32]:
    width = column.dtype.shape[0]  # type: ignore[attr-defined]  # of an array: its commit has been checked
    found = np.full((len(column), width), np.nan, np.float32)
    found[column.is_not_null().to_numpy()] = column.drop_nulls().to_numpy()
    return found
