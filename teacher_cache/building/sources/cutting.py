"""Where the shards of new rows end: as the job says, or as large as is good for what is stored of a row."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import polars as pl

from storage.datasets import Source
from storage.datasets.base import Density
from storage.datasets.text.blocks import BYTES_PER_TOKEN
from storage.encodings import AnyEncoding
from storage.format.rows import RowPlan
from storage.format.specs import DatasetSpec
from storage.tasks import task_of
from teacher_cache.building.sources.growth import default_rows_per_shard, default_sites_per_shard, grow
from teacher_cache.building.sources.pictures import rows_of_kept


def choose_cut(
    source: Source, spec: DatasetSpec, files: pl.DataFrame, recorded: RowPlan, encodings: Sequence[AnyEncoding]
) -> int:
    """Return how much of a source is a shard of its new rows, in the measure that its plan counts in.

    Args:
        source: with its `rows_per_shard`, if the job has one.
        spec: of the dataset.
        files: of the source, in row order.
        recorded: the plan in the cache, which is not cut again.
        encodings: of the teachers that the job asks about it.
    """
    measure = source.measure_per_row()
    if source.rows_per_shard:
        return measure * source.rows_per_shard
    # only what is new is looked at
    density = source.density() if grow(recorded, files, 1).segment is not None else None
    cut = default_cut(spec, int(files["rows"].sum()), measure, encodings, density)
    if spec.encoded:  # a photograph may be larger as its file than as the pixels that are left of it
        cut = min(cut, rows_of_kept(source, spec, files))
    return cut


def default_cut(
    spec: DatasetSpec, total: int, measure: int, encodings: Sequence[AnyEncoding], density: Density | None = None
) -> int:
    """Return how much of a plan is a shard, in its measure.

    Args:
        spec: of the dataset.
        total: of the whole source, in the measure.
        measure: about how much of it is a row.
        encodings: of its teachers' targets.
        density: of a source in ranges; None: it is not known.
    """
    sites = task_of(spec).sites(spec.input_shape)
    if sites == ():
        return measure * default_rows_per_shard(spec.input_shape, spec.input_dtype, num_classes=spec.num_classes)
    site_bytes = max((encoding.bytes_per_row(spec.num_classes) for encoding in encodings), default=0)
    if density is not None:
        site_bytes = ceil(site_bytes * density.labelled / density.sites)  # targets are where a label is
        return max(1, round(default_sites_per_shard(round(total * density.sites), site_bytes) / density.sites))
    of_row = prod(sites)
    if spec.own_length and spec.byte_ranges:  # the longest tells little of the others, the bytes that one takes more
        of_row = max(1, min(of_row, measure // BYTES_PER_TOKEN))
    wanted = default_sites_per_shard(-(-total // measure) * of_row, site_bytes)
    return measure * max(1, wanted // of_row)
