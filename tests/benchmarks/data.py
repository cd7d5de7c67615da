"""The data that benchmarks run on: CIFAR-10 as Parquet, from beside the repository."""

from __future__ import annotations

import sys
from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared"
TRAIN = SHARED / "data/cifar10-train.parquet"
TEACHER = SHARED / "teachers/resnet9.py"


def require(path: Path) -> Path:
    """Return a path, or end the benchmarks: figures on made-up data would say nothing."""
    if not path.exists():
        sys.exit(f"this benchmark needs {path}")
    return path


def cifar_slice(folder: Path, rows: int) -> Path:
    """Write the first rows of CIFAR-10's training split as Parquet of their own."""
    import pyarrow.parquet as pq

    path = folder / f"cifar{rows}.parquet"
    pq.write_table(pq.read_table(require(TRAIN)).slice(0, rows), path, row_group_size=5000)
    return path
