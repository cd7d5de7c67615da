"""Which workers a build has: tables, and a real cluster of two pools whose GPUs are no more than names."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from jobs.cluster.builds import find_pools, open_runner
from jobs.cluster.heaps import ONE, VARIABLE
from jobs.cluster.opening import open_client
from jobs.cluster.pools import Pool, Pools, lay_out, visible_gpus
from jobs.files.cluster_options import BuildClusterOptions, processor_limit
from tests.teacher_cache.toys import build, contents, write_digits, write_job

Row = tuple[int, int, int]  # workers, shards at once, threads of torch


@pytest.mark.parametrize(
    ("options", "gpus", "processors", "ingest", "teacher"),
    [
        ({}, [], 16, (16, 2, 1), (16, 2, 1)),
        ({"workers": 4}, [], 16, (4, 2, 4), (4, 2, 4)),
        ({"workers": 4, "threads": 3}, [], 16, (4, 2, 3), (4, 2, 3)),
        ({}, ["0"], 16, (16, 2, 1), (1, 8, 16)),
        ({}, ["0", "1", "2", "3", "4", "5", "6", "7"], 16, (16, 2, 1), (8, 4, 2)),
        ({}, ["0", "1"], 24, (24, 2, 1), (2, 6, 12)),
        ({"workers": 1}, ["0", "1"], 16, (1, 2, 16), (1, 8, 16)),
        ({"workers": 6, "threads": 1}, ["0", "1"], 16, (6, 2, 1), (2, 4, 1)),
        ({}, ["0", "1"], 1, (1, 2, 1), (1, 4, 1)),
        ({"kind": "inline"}, ["0", "1"], 16, (1, 2, 16), (1, 8, 16)),
        ({"kind": "inline"}, [], 16, (1, 2, 16), (1, 2, 16)),
        ({"kind": "address", "address": "tcp://h:1"}, ["0"], 16, (1, 2, 16), (1, 2, 16)),
    ],
)
def test_a_teachers_stage_has_a_worker_a_gpu_and_the_ingest_one_a_processor(
    options: dict[str, object], gpus: Sequence[str], processors: int, ingest: Row, teacher: Row
) -> None:
    pools = lay_out(BuildClusterOptions.model_validate(options), gpus, processors)
    assert [(len(pool.devices), pool.at_once, pool.threads) for pool in pools] == [ingest, teacher]
    assert pools.teacher.has_gpus == (bool(gpus) and "address" not in options)


def test_each_worker_of_a_teacher_sees_a_gpu_of_its_own() -> None:
    pools = lay_out(BuildClusterOptions(), ["3", "5"], 8)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in pools.teacher.environments] == ["3", "5"]
    assert pools.ingest.environments == [{VARIABLE: str(ONE)}] * 8


@pytest.mark.parametrize(
    ("device", "visible", "count", "gpus"),
    [("auto", None, 2, ["0", "1"]), ("cuda", "4, 6", 2, ["4", "6"]), ("auto", None, 0, []), ("cpu", None, 2, [])],
)
def test_gpus_are_those_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, count: int, gpus: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert visible_gpus(device) == gpus


TELLING = """
import json, os
from pathlib import Path

from torch import nn

HERE = Path(__file__).parent

def build():
    told = {"pid": os.getpid(), "device": os.environ.get("CUDA_VISIBLE_DEVICES")}
    (HERE / f"loaded-{os.getpid()}.json").write_text(json.dumps(told))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.mark.slow
def test_a_teacher_is_loaded_once_for_each_gpu_by_a_worker_that_sees_that_one(tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(TELLING)
    torch.manual_seed(0)
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).state_dict(), tmp_path / "linear.pt")
    teacher = '[[teacher]]\nname = "linear"\nfactory = "telling.py:build"\nweights = "linear.pt"\n'
    rows = write_digits(tmp_path, 96, rows_per_shard=4)
    pools = Pools(Pool((None, None, None), 2, 1), Pool(("6", "7"), 4, 1))
    with open_runner(BuildClusterOptions(), pools) as runner:
        report = build(write_job(tmp_path, rows, teacher), runner=runner, device="cpu")
    assert (report.built, report.exit_code) == (48, 0)
    told = [json.loads(path.read_text()) for path in tmp_path.glob("loaded-*.json")]
    loaded = [each["device"] for each in told if each["pid"] != os.getpid()]  # this process looks at shapes alone
    assert sorted(loaded) == ["6", "7"]
    build(write_job(tmp_path, rows, teacher, cache="inline"))
    assert contents(tmp_path / "cache") == contents(tmp_path / "inline")


@pytest.mark.parametrize(
    ("variable", "job", "threads"),
    [("3", {}, 3), ("3,2", {}, 3), ("3", {"threads": 1}, 1), ("many", {}, 8), ("0", {}, 8), (None, {}, 8)],
)
def test_a_build_has_the_threads_of_the_environment_where_its_job_names_none(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, job: dict[str, int], threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    for module in ("jobs.cluster.builds", "jobs.files.cluster_options"):
        monkeypatch.setattr(f"{module}.num_processors", lambda: 8)
    options = BuildClusterOptions.model_validate({"kind": "inline"} | job)
    assert find_pools(options, "cpu").teacher.threads == options.num_threads == threads


@pytest.mark.parametrize(
    ("said", "limit"), [("max 100000", None), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)]
)
def test_the_limit_of_a_container_is_one_of_processors(tmp_path: Path, said: str, limit: int | None) -> None:
    (tmp_path / "own").write_text("1:name=systemd:/other\n0::/pods/one\n")
    (tmp_path / "pods/one").mkdir(parents=True)
    (tmp_path / "pods/one/cpu.max").write_text(f"{said}\n")
    assert processor_limit(tmp_path / "own", str(tmp_path)) == limit
    assert processor_limit(tmp_path / "none", str(tmp_path)) is None


def test_what_the_c_library_is_told_counts_as_a_worker_starts() -> None:
    """Dask's nanny sets the variables of a worker when that has started, too late for glibc; and some of its own."""

    def begun_with() -> dict[str, str]:
        began = Path("/proc/self/environ").read_bytes().split(b"\0")
        return dict(each.decode().split("=", 1) for each in began if each.startswith(b"MALLOC_"))

    workers = Pool((None,), 1, 1).environments
    with open_client(BuildClusterOptions(kind="local", workers=1), environments=workers) as client:
        assert client.submit(begun_with).result(timeout=60) == {VARIABLE: str(ONE)}
