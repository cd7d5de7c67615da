"""Building again with nothing missing, against a process that only imports the libraries it needs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.data import TRAIN, require
from tests.benchmarks.pairs import Figure, pairs
from tests.benchmarks.teachers import linear

JOB = """
cache = "cache"
[[dataset]]
name = "cifar"
kind = "parquet_images"
path = "{path}"
[[teacher]]
name = "linear"
factory = "{factory}"
arguments = {{ inputs = 3072 }}
weights = "{weights}"
"""
LIBRARIES = "import typer, rich.progress, pydantic, numpy, polars, pyarrow.parquet, zarr, xxhash, PIL.Image"


def measure(folder: Path) -> Iterator[Figure]:
    """Yield seconds beyond the imports, for 50,000 rows with a teacher."""
    job = folder / "job.toml"
    job.write_text(JOB.format(path=require(TRAIN), **linear(folder)))
    program = [str(Path(sys.executable).with_name("cache")), "build", str(job)]
    _seconds(program)

    def imports() -> float:
        return _seconds([sys.executable, "-c", LIBRARIES])

    extra = [a - b for a, b in pairs(lambda: _seconds(program), imports)]
    yield Figure("build with nothing missing, beyond imports", extra, 1.0, "at most", " s")


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began
