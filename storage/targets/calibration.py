"""The expected calibration error: by how much confidences and accuracy differ, bin by bin of the confidence.

One rule for all who measure it: of a teacher while a cache is planned, of students on held rows, and in the report.
What is given may be tensors, on any device, or columns of a table.

Shapes: N rows, K bins.

Source: Guo et al. 2017, eq. 3, bins of equal width, arXiv 1706.04599. An edge belongs to the bin above it here, and
only 1 to the one below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

NUM_BINS = 15  # as in the paper

Values = TypeVar("Values", "Tensor", "pl.Series", "pl.Expr")
Sums = TypeVar("Sums", "Tensor", "pl.Series")


def bin_of(confidence_N: Values) -> Values:
    """Return the number of the bin of each confidence, whole but of the type that was given.

    >>> import polars as pl
    >>> bin_of(pl.Series([0.0, 0.5, 0.95, 1.0])).to_list()  # bins are 1/15 wide: the 8th is [0.467, 0.533)
    [0.0, 7.0, 14.0, 14.0]
    """
    return (confidence_N * NUM_BINS).floor().clip(0, NUM_BINS - 1)


def expected_error(rows_K: Sums, confidence_K: Sums, correct_K: Sums) -> float:
    """Return Σ over bins of their share of the rows × |accuracy − mean confidence|.

    Args:
        rows_K: of each bin.
        confidence_K: the sum of theirs.
        correct_K: how many of them are right.

    Of three rows, two in one bin, sure by 0.95 each and one of them right, the third in another, sure by 0.5 and right:

    >>> import polars as pl
    >>> expected_error(pl.Series([2, 1]), pl.Series([1.9, 0.5]), pl.Series([1, 1]))  # (|1 − 1.9| + |1 − 0.5|) / 3
    0.4666666666666666
    """
    return float((correct_K - confidence_K).abs().sum()) / float(rows_K.sum())
