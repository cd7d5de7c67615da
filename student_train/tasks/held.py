"""The held sites as a table: its columns, and columns that are filled a part at a time. N sites, B of a part."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
from torch import Tensor

DATASET = "dataset"  # a column of its own where rows are of several
HELD_SCHEMA = {"position": pl.Int64, "row": pl.Int64, "shard": pl.Int64, "sample_id": pl.String, "label": pl.Int64}
TEACHER_SCHEMA = {
    "teacher_top": pl.Int64,
    "teacher_top_probability": pl.Float32,
    "teacher_label_log_probability": pl.Float32,
}
STUDENT_SCHEMA = {"top": pl.Int64, "top_probability": pl.Float32, "label_log_probability": pl.Float32}


class Columns:
    """Columns of N sites in place, filled a part of the sites at a time.

    Pieces that are kept for a `cat` at the end would lie between the logits of one part and the next, where the C
    library then reuses neither: 700 MB more for 2,000 positions of 50,000 ids (docs/log.md).
    """

    def __init__(self, num_sites: int):
        self._num_sites = num_sites
        self._filled = 0
        self._columns: dict[str, Tensor] = {}

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Fill in the next sites: (B, …) of each column."""
        sites = slice(self._filled, self._filled + len(next(iter(part.values()))))
        for name, values_B in part.items():
            self._columns.setdefault(name, values_B.new_empty(self._num_sites, *values_B.shape[1:]))[sites] = values_B
        self._filled = sites.stop

    def filled(self) -> dict[str, Tensor]:
        """Return them, (N, …) each, on the CPU.

        Raises:
            ValueError: there are sites that nobody filled in.
        """
        if self._filled != self._num_sites:
            raise ValueError(f"{self._filled} of {self._num_sites} rows are filled in")
        return {name: column_N.cpu() for name, column_N in self._columns.items()}
