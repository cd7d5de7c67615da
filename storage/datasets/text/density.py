"""How many rows and tokens a stretch of a source in ranges has, from a few short ones: planned before it is read.

Shards of tokens are cut, and a worker's memory is bounded, by what text becomes, which no size of a file tells: bytes
of markup, of a small vocabulary, of prompts of which nothing is to be predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from storage.datasets.base import Density
from storage.datasets.text.reading.opening import is_compressed, kind_of
from storage.errors import StillroomError
from storage.tasks import NO_LABEL

if TYPE_CHECKING:
    from storage.datasets.text.files import TokenisedFiles

SAMPLED_BYTES = 512 * 2**10  # of the measure, all in all: a second of a tokenizer or of a chat template
SPOT_BYTES = 16 * 2**10  # each at least, and enough for SPOT_ROWS
SPOT_ROWS = 16
MOST_SPOTS = 32
SPOTS_OF_PARQUET = 4  # what lies before a row in its group is unpacked
WITHIN_COMPRESSED = 8 * 2**20  # what lies before a place is unpacked
SPREAD = 1.5  # a shard may have so many times what is told


def measure_density(source: TokenisedFiles) -> Density | None:
    """Return the density of a prepared source, from spots that lie evenly over its files; None: it cannot be told.

    The same files give the same density. A row that cannot be read has no tokens; what stops a build is left to the
    worker that comes to it, which says where it is.
    """
    found = []
    for file, start, stop, last in _spots(source):
        try:
            samples = list(source.rows_of(source.read_range(file, start, stop, last=last)))
        except StillroomError:
            return None
        pairs = [sample.payload for sample in samples if isinstance(sample.payload, np.ndarray)]
        sites = sum(pair_2L.shape[1] for pair_2L in pairs)
        labelled = sum(int(np.count_nonzero(pair_2L[1] != NO_LABEL)) for pair_2L in pairs)
        found.append((stop - start, len(samples), sites, labelled))
    return density_of(found)


def density_of(spots: Sequence[tuple[int, int, int, int]]) -> Density | None:
    """Return the density of some spots: the mean, or more where the densest has more than SPREAD times that.

    So a part of a source that has more than the rest of it is within SPREAD too, if a spot was in it.

    Args:
        spots: measure, rows, sites and labelled sites of each.

    >>> density_of([(100, 2, 20, 10), (100, 2, 24, 10)])
    Density(rows=0.02, sites=0.22, labelled=0.1)
    >>> round(density_of([(100, 1, 0, 0), (100, 1, 0, 0), (100, 3, 60, 60)]).sites, 6)  # 0.2 on average
    0.4
    >>> density_of([(100, 0, 0, 0)]) is None
    True
    """
    if not sum(sites for _, _, sites, _ in spots):
        return None
    measures, *counts = (np.array(each, np.float64) for each in zip(*spots, strict=True))
    return Density(*(float(max(each.sum() / measures.sum(), (each / measures).max() / SPREAD)) for each in counts))


def _spots(source: TokenisedFiles) -> list[tuple[str, int, int, bool]]:
    """Return (file, start, stop, whether it ends there) of spots: small files whole, parts of others."""
    files = [(file, rows) for file, rows in source.files().select("file", "rows").iter_rows() if rows]
    ends = np.cumsum([rows for _, rows in files])
    if not len(ends):
        return []
    total = int(ends[-1])
    spot = min(SAMPLED_BYTES, max(SPOT_BYTES, SPOT_ROWS * source.measure_per_row()))
    most = SPOTS_OF_PARQUET if any(kind_of(source.at(file)) == ".parquet" for file, _ in files[:1]) else MOST_SPOTS
    number = max(1, min(most, SAMPLED_BYTES // min(spot, -(-total // len(files)))))
    found: dict[tuple[str, int, int, bool], None] = {}
    for middle in ((2 * i + 1) * total // (2 * number) for i in range(number)):
        at = int(np.searchsorted(ends, middle, side="right"))
        file, rows = files[at]
        start = max(0, min(middle - int(ends[at] - rows) - spot // 2, rows - spot))
        if is_compressed(source.at(file)):
            start %= max(1, min(rows, WITHIN_COMPRESSED) - spot)
        stop = min(rows, start + spot)
        found[file, start, stop, stop == rows] = None
    return list(found)
