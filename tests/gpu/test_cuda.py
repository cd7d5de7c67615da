"""The main job on a CUDA device: run where one is, skipped with a reason elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CACHE_JOB = """
cache = "{cache}"
[[dataset]]
name = "digits"
kind = "digits"
validation = 0.2
rows_per_shard = 256
[[teacher]]
name = "conv"
factory = "conv.py:build"
weights = "conv.pt"
features = {{ first = {{ layer = "0", pool = "none" }} }}
[cluster]
kind = "inline"
"""
STUDENT_JOB = """
cache = "cuda"
runs = "runs-{device}"
train = "digits/train"
validation = "digits/validation"
[[student]]
name = "cnn"
architecture = "cnn"
options = {{ widths = [8, 16] }}
epochs = 6
batch_size = 64
learning_rate = 0.01
objective = [{{ loss = "labels", weight = 0.5 }}, {{ loss = "kd", teacher = "conv", weight = 0.5 }}]
"""
FACTORY = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
"""


def run(program: str, *arguments: object) -> Any:
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout)


def test_a_cuda_cache_agrees_with_a_cpu_cache_and_trains_a_student(tmp_path: Path) -> None:
    from storage.cache import Cache

    torch.manual_seed(0)
    (tmp_path / "conv.py").write_text(FACTORY)
    namespace: dict[str, Any] = {}
    exec(FACTORY, namespace)
    torch.save(namespace["build"]().state_dict(), tmp_path / "conv.pt")
    for device in ("cpu", "cuda"):
        job = tmp_path / f"{device}.toml"
        job.write_text(CACHE_JOB.format(cache=device))
        run("cache", "build", job, "--device", device)
    cpu, cuda = (Cache.open(str(tmp_path / device)) for device in ("cpu", "cuda"))
    for shard in cpu.catalogue().shards("digits"):
        names = ["logits", "feature/first"]
        ours, theirs = (cache.read_targets("digits", "conv", shard.shard, names=names) for cache in (cuda, cpu))
        for name in names:
            torch.testing.assert_close(
                torch.from_numpy(ours[name]), torch.from_numpy(theirs[name]), atol=1e-2, rtol=1e-2
            )
    for device in ("cpu", "cuda"):
        job = tmp_path / f"students-{device}.toml"
        job.write_text(STUDENT_JOB.format(device=device))
        (record,) = run("student", "train", job, "--device", device)["students"]
        assert record["accuracy"] > 0.7
