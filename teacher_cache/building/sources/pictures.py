"""Pictures that are kept as they come: how many bytes of them a row and a shard are, before any is read."""

from __future__ import annotations

from math import prod

import numpy as np
import polars as pl

from storage.datasets import Source
from storage.datasets.images import ImageSource
from storage.format.rows import RowPlan
from storage.format.specs import DatasetSpec
from teacher_cache.building.sources.growth import TARGET_SHARD_BYTES

LONGER_SIDE = 2  # of a picture, in shorter ones; few are longer


def rows_of_kept(source: Source, spec: DatasetSpec, files: pl.DataFrame) -> int:
    """Return the rows of a shard of pictures that are kept as they come, or encoded anew, by their mean size."""
    mean = _encoded_anew(source, spec)
    if mean is None:
        mean = int(files["size"].sum()) // max(1, int(files["rows"].sum()))
    return max(1, TARGET_SHARD_BYTES // max(1, mean))


def most_kept_bytes(source: Source, spec: DatasetSpec, plan: RowPlan) -> int:
    """Return the bytes of pictures in the largest shard: those of its files, of Parquet a share of them by its rows."""
    sizes = np.array([stop - start for _, start, stop in plan.shards()], np.int64)
    if (each := _encoded_anew(source, spec)) is not None:
        return each * int(sizes.max())
    extents = plan.extents
    in_file = extents.select(pl.col("rows").sum().over("file"))["rows"].to_numpy()
    of_extent = extents["size"].to_numpy() * (extents["rows"].to_numpy() / np.maximum(1, in_file))
    row_ends, byte_ends = (np.concatenate([[0.0], np.cumsum(each)]) for each in (extents["rows"].to_numpy(), of_extent))
    cuts = np.concatenate([[0], np.cumsum(sizes)])
    return int(np.ceil(np.diff(np.interp(cuts, row_ends, byte_ends)).max()))


def _encoded_anew(source: Source, spec: DatasetSpec) -> int | None:
    """Return about the bytes of a picture that is encoded anew, at most those of its pixels; None: it is not."""
    if not isinstance(source, ImageSource) or source.reencode is None:
        return None
    if source.shorter_side is None:
        return prod(spec.input_shape)
    return spec.input_shape[0] * LONGER_SIDE * source.shorter_side**2
