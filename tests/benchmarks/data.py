"""The data that benchmarks run on: CIFAR-10 as Parquet, from beside the repository."""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
TRAIN = SHARED / "data/cifar10-train.parquet"
TEACHER = SHARED / "teachers/resnet9.py"


def require(path: Path) -> Path:
    """Return a path, or end the benchmarks: figures on made-up data would say nothing."""
    if not path.exists():
        sys.exit(f"this benchmark needs {path}")
    return path


def cifar_slice(folder: Path, rows: int, source: Path = TRAIN) -> Path:
    """Write the first rows of a split of CIFAR-10 as Parquet of their own, unless they are there."""
    import pyarrow.parquet as pq

    path = folder / f"{source.stem}-{rows}.parquet"
    if not path.exists():
        pq.write_table(pq.read_table(require(source)).slice(0, rows), path, row_group_size=5000)
    return path
