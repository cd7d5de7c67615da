"""A job whose teacher sleeps instead of computing, and what one build of it took: how a build scales over workers.

It sleeps over whole shards only. When a worker loads it, it is tried on up to eight rows a dozen times
(teacher_cache.teachers.steady): once a worker, whatever there is to do.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROWS_PER_SHARD = 16  # more than it is tried on when it is loaded
TEACHER = """
import time
from torch import nn


class Sleeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, inputs):
        time.sleep({seconds} if len(inputs) == {rows} else 0.0)
        return self.linear(inputs.flatten(1))


def build():
    return Sleeping()
"""
JOB = """
cache = "cache-{name}"
[[dataset]]
name = "d"
kind = "arrays"
path = "inputs-{name}.npy"
labels = "labels-{name}.npy"
rows_per_shard = {rows}
[[teacher]]
name = "t"
factory = "sleeping.py:build"
weights = "sleeping.safetensors"
[cluster]
kind = "address"
address = "{address}"
threads = 1
"""


def write_job(folder: Path, address: str, shards: int, seconds: float) -> Path:
    """Return a job of so many shards, each of which its teacher sleeps over."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    name = address.rpartition(":")[2]
    np.save(folder / f"inputs-{name}.npy", np.zeros((shards * ROWS_PER_SHARD, 2), np.uint8))
    np.save(folder / f"labels-{name}.npy", np.arange(shards * ROWS_PER_SHARD) % 2)
    (folder / "sleeping.py").write_text(TEACHER.format(seconds=seconds, rows=ROWS_PER_SHARD))
    torch.manual_seed(0)
    linear = nn.Linear(2, 2)
    save_file({f"linear.{key}": value for key, value in linear.state_dict().items()}, folder / "sleeping.safetensors")
    job = folder / f"sleeping-{name}.cache.toml"
    job.write_text(JOB.format(name=name, rows=ROWS_PER_SHARD, address=address))
    return job


def asking_s(job: Path) -> float:
    """Return the seconds of the stage of a build that asks the teacher, as `cache build` tells them."""
    command = [str(Path(sys.executable).with_name("cache")), "build", str(job), "--log-format", "json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}\n{ended.stderr[-2000:]}")
    events = [json.loads(line) for line in ended.stderr.splitlines()]
    ended_s = (e["seconds"] for e in events if e["event"] == "stage_ended" and e["stage"].startswith("d/t"))
    return float(next(ended_s))
