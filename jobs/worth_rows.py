"""First rows of CIFAR-10 for worth and recover: `python jobs/worth_rows.py CIFAR10 FOLDER [TRAINING_ROWS]`."""

import sys
from pathlib import Path

import pyarrow.parquet as pq

for name, rows in (("train", int(sys.argv[3]) if sys.argv[3:] else 16_384), ("test", 5_000)):
    out = Path(sys.argv[2]) / f"{name}.parquet"
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pq.read_table(Path(sys.argv[1]) / f"cifar10-{name}.parquet").slice(0, rows), out)
