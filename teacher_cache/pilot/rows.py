"""The rows of a pilot: a few hundred, spread over a dataset, read straight from its source, as a view shows them.

Shapes: S rows read, B readable rows, `sites` the axes of a row's sites (storage.tasks).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from storage.errors import MissingSource
from storage.tasks import NO_LABEL, Task, task_of
from storage.views import PLAIN
from storage.views.check import Seen, own_size, readable_rows, show_rows
from teacher_cache.building.prepared import PreparedDataset, Stage
from teacher_cache.work.ingest import decode_rows

if TYPE_CHECKING:
    from torch import Tensor

RUNS = 64  # of neighbouring rows: a source reads a run about as fast as a single row of it
RANGES = 8  # of bytes of a text: each begins at a line end, and has whole lines
MIN_RANGE_BYTES = 2**16
MIN_ROWS = 16  # however many sites each has, so that these are not all of one document


class SpreadRows(NamedTuple):
    """Readable rows of one dataset.

    Attributes:
        shown_B: what a teacher is asked about.
        labels: int64, (B, *sites); −1 where there is none, or none that is true of a mixed image.
        keys_B: int64, of the samples.
    """

    shown_B: Tensor
    labels: Tensor
    keys_B: Tensor


def sites_per_row(dataset: PreparedDataset) -> int:
    """Return how many targets a row has."""
    return prod(task_of(dataset.spec).sites(dataset.spec.input_shape))


def rows_wanted(stage: Stage, wanted: int) -> int:
    """Return how many rows are read where so many sites are wanted."""
    return max(MIN_ROWS, -(-wanted // sites_per_row(stage.dataset)))


def spread_runs(num_rows: int, wanted: int, most: int = RUNS) -> list[tuple[int, int]]:
    """Return up to `most` runs [start, stop) of rows, ascending and apart, evenly over all; at most `wanted` rows.

    >>> spread_runs(100, 3)  # one row at each third
    [(0, 1), (33, 34), (66, 67)]
    >>> runs = spread_runs(60_000, 160)  # 64 runs of two or three rows each
    >>> runs[:3], runs[-1]
    ([(0, 2), (937, 940), (1875, 1877)], (59062, 59065))
    """
    wanted = min(wanted, num_rows)
    runs = min(most, wanted)
    starts = [i * num_rows // runs for i in range(runs + 1)]
    sizes = [(i + 1) * wanted // runs - i * wanted // runs for i in range(runs)]
    return [(start, min(start + size, stop)) for start, stop, size in zip(starts, starts[1:], sizes, strict=False)]


def spread_ranges(dataset: PreparedDataset, wanted: int) -> list[tuple[int, int]]:
    """Return up to RANGES ranges of bytes, evenly over all, in which there are about `wanted` rows or more."""
    size = max(MIN_RANGE_BYTES, dataset.measure_per_row * -(-wanted // RANGES))
    total = dataset.rows.num_rows
    return spread_runs(total, size * RANGES, most=RANGES)


def runs_of(stage: Stage, wanted: int) -> list[tuple[int, int]]:
    """Return what is read of a dataset for about `wanted` sites: runs of rows, or ranges of bytes."""
    dataset, rows = stage.dataset, rows_wanted(stage, wanted)
    return spread_ranges(dataset, rows) if dataset.spec.byte_ranges else spread_runs(dataset.rows.num_rows, rows)


def read_spread(stage: Stage, wanted: int, runs: Sequence[tuple[int, int]] | None = None) -> SpreadRows:
    """Return rows of a dataset in the view of a stage, with about `wanted` sites; if given, of some `runs_of` it.

    Raises:
        MissingSource: none of them can be read, or the source is not what it was a moment ago.
    """
    import torch

    dataset = stage.dataset
    rows = rows_wanted(stage, wanted)
    extents = [extent for run in runs or runs_of(stage, wanted) for extent in dataset.rows.slice(*run)]
    arrays, columns, _ = decode_rows(dataset.source, dataset.spec, extents)
    table = pa.table(columns)
    readable = readable_rows(table)
    if not readable.mask_S.any():
        raise MissingSource(
            f"none of {len(readable.mask_S)} rows of dataset {dataset.spec.name} can be read",
            found="\n".join(columns["error"].to_pylist()[:3]),
        )
    labels = torch.from_numpy(task_of(dataset.spec).labels(table, arrays.__getitem__, readable.mask_S))
    own = None if stage.spec is None else own_size(dataset.spec, stage.spec)
    shown_B = show_rows(Seen(dataset.spec, arrays["inputs"], own), readable, stage.view, dataset.views)
    if stage.view != PLAIN:
        assert dataset.views is not None
        view = dataset.views.view(stage.view)
        labels = torch.full_like(labels, NO_LABEL) if view.mixing else labels  # two images, and no one true class
    # of ranges there may be more than were wanted
    even_B = torch.arange(min(rows, len(labels))) * len(labels) // min(rows, len(labels))
    return SpreadRows(shown_B[even_B], labels[even_B], torch.from_numpy(readable.keys_B)[even_B])


def choose_sites(task: Task, labels: Tensor, wanted: int) -> Tensor:
    """Return which of all sites to measure on, ascending int64: up to `wanted` of those that a task looks at."""
    import torch

    candidates = task.asked_sites(labels)
    every = torch.arange(min(wanted, len(candidates))) * len(candidates) // min(wanted, len(candidates))
    return candidates[every]
