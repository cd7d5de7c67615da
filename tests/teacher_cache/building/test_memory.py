from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from storage.encodings import DenseEncoding, SparseEncoding
from storage.encodings.none import NoEncoding
from teacher_cache.building.memory import _copies, _Sizes, live_bytes
from teacher_cache.teachers.model import part_sites
from tests.teacher_cache.toys import run_program, write_job

SHARED = Path(__file__).parents[3].parent / "shared"
MARGIN = 1.3

CIFAR = """
[[dataset]]
name = "test"
kind = "parquet_images"
path = "some.parquet"
rows_per_shard = 256
"""
RESNET9 = f"""
[[teacher]]
name = "resnet9"
factory = "{SHARED}/teachers/resnet9.py:build"
weights = "{SHARED}/teachers/cifar10-resnet9.safetensors"
mean = [0.4914, 0.4822, 0.4465]
std = [0.2470, 0.2435, 0.2616]
features = {{ layer3 = {{ layer = "layer3", pool = "none" }} }}
"""


def test_tensors_alive_at_once_are_counted_and_views_are_not() -> None:
    with live_bytes() as live:
        first = torch.zeros(100)
        second = first + 1
        del first
        second.view(10, 10)[0].t()
        third = second * 2
    assert live.peak == 2 * 400
    assert third.shape == (100,)


@pytest.mark.parametrize("asked", [{"is_causal": True}, {"attn_mask": True}, {"enable_gqa": True}], ids=str)
def test_attention_that_is_fused_holds_no_scores_and_one_that_is_written_out_does(asked: dict[str, bool]) -> None:
    rows, heads, length, width = 2, 4, 256, 8
    scores = 4 * rows * heads * length**2
    with torch.device("meta"):
        query = torch.zeros(rows, heads, length, width)
        key = query[:, :2] if "enable_gqa" in asked else query
        if "attn_mask" in asked:
            asked = {"attn_mask": torch.zeros(rows, 1, length, length, dtype=torch.bool)}  # type: ignore[dict-item]
    with live_bytes() as fused:
        said = torch.nn.functional.scaled_dot_product_attention(query, key, key, **asked)
    with live_bytes() as eager:
        (query @ query.mT).softmax(-1) @ query
    assert said.shape == query.shape
    assert fused.peak < scores <= eager.peak


def test_a_model_with_convolutions_reorders() -> None:
    with torch.device("meta"), live_bytes() as live:
        nn.Linear(3, 3)(torch.zeros(1, 3))
        assert not live.reorders
        nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 8, 8))
    assert live.reorders


def test_nothing_is_allocated_to_count_a_model() -> None:
    with torch.device("meta"):
        model = nn.Linear(10**6, 10**6)  # 4 TB
        with live_bytes() as live:
            model(torch.zeros(1, 10**6))
    assert live.peak >= 4 * 10**6


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not (SHARED / "teachers").is_dir(), reason="CIFAR-10 and its teacher do not lie beside this clone")
def test_the_peak_of_a_worker_is_within_the_bound_of_a_dry_run(tmp_path: Path) -> None:
    pq.write_table(pq.read_table(SHARED / "data/cifar10-test.parquet").slice(0, 1280), tmp_path / "some.parquet")
    job = write_job(tmp_path, CIFAR, RESNET9, cluster='kind = "local"\nworkers = 1')
    bound = json.loads(run_program("cache", "build", job, "--dry-run", "--json").stdout)["worker_memory_bytes"]
    peak = 0
    command = [str(Path(sys.executable).with_name("cache")), "build", str(job)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error, OSError, StopIteration):
                children = psutil.Process(process.pid).children(recursive=True)
                worker = next(child for child in children if "spawn_main" in str(child.cmdline()))
                peak = max(peak, _peak_bytes(worker.pid))
            time.sleep(0.05)
    assert process.returncode == 0
    assert 0 < peak < MARGIN * bound, f"{peak / 2**20:.0f} MiB, bound {bound / 2**20:.0f} MiB"


def _peak_bytes(pid: int) -> int:
    """Return the largest resident size that Linux has seen of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def test_beside_a_gpu_activations_are_no_memory_of_the_host_and_on_it_shards_are_those_whose_turn_it_is() -> None:
    sizes = _Sizes(
        weights=1000, activations=80, heard=25, sites=5, classes=2, copies=5.0, inputs=7, shard=10, seen=5, source=99
    )
    assert sizes.on_cpu(2) == (1000, 80 + 5 * 4 * 5 * 2, 2 * 3 * 10 + 5, 99)
    assert sizes.beside_gpu(8) == (1000, 0, 8 * 3 * 10, 99)  # pictures are decoded on the host
    assert sizes.on_gpu() == (1000, 80 + 5 * 4 * 5 * 2 + 2 * 25, 3 * 7 + 5, 0)


def test_logits_of_no_more_sites_than_fit_a_part_are_ever_there() -> None:
    sizes = _Sizes(
        weights=0, activations=0, heard=0, sites=2**20, classes=10**5, copies=3.0, inputs=0, shard=0, seen=0, source=0
    )
    assert sizes.on_cpu(2)[1] == 3 * part_sites("cpu", 10**5) * 4 * 10**5
    assert sizes.on_gpu()[1] == 3 * part_sites("cuda", 10**5) * 4 * 10**5


def test_what_encoding_holds_of_logits_is_measured() -> None:
    few, all_of_them = _copies(SparseEncoding(kind="sparse", k=8), 50_000), _copies(DenseEncoding(dtype="int8"), 50_000)
    assert 1 < few < all_of_them < 6
    assert _copies(NoEncoding(kind="none"), 50_000) == 0
