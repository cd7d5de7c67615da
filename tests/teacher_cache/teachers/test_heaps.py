"""What is freed, is kept for what is taken next: pages are not asked of the kernel again."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from teacher_cache.teachers.loading import keep_freed
if sys.argv[1] == "kept":
    keep_freed()
def layers():
    # 16 MB each, all alive at once as a network's layers are, then all freed
    return sum(float(each[0]) for each in [torch.ones(2**22) for _ in range(4)])
layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    layers()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(which: str, **environment: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", FAULTS, which], capture_output=True, text=True, check=True, env=environment
    )
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_is_freed_is_kept() -> None:
    given_back = faults("as it is", MALLOC_TRIM_THRESHOLD_="65536")  # as Dask starts a worker
    assert given_back > 5 * 4 * 2**24 // 4096  # at least five of ten passes
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="65536") < given_back // 2
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="70000") > given_back // 2  # somebody's own choice stays
