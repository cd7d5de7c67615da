"""All shards of a teacher are of the same weights, as they were loaded, wherever they came from (invariant 4)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import BadTeacher, CorruptObject, StaleCache
from storage.format.shards import ShardKey
from storage.format.specs import WeightsSpec
from teacher_cache.teachers.loaded import weights_digest
from teacher_cache.teachers.loading import cached_teacher
from tests.teacher_cache.toys import build, write_job

DATASET = '[[dataset]]\nname = "d"\nkind = "arrays"\npath = "x.npy"\nclasses = ["a", "b"]\nrows_per_shard = 2\n'
TEACHER = '[[teacher]]\nname = "t"\nfactory = "t.py:{function}"\n'
FACTORIES = """
import pathlib, random, numpy, torch
HERE = pathlib.Path(__file__).parent
def linear(values):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(values)
    return model
def by_torch(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
def by_numpy(): return linear(float(numpy.random.rand()))
def by_python(): return linear(random.random())
def seeded():
    torch.manual_seed(7)
    return by_torch()
def from_a_file(): return linear(float((HERE / "inner").read_text()))
"""


def write(folder: Path, function: str, cache: str = "cache") -> Path:
    np.save(folder / "x.npy", np.arange(16, dtype=np.uint8).reshape(4, 1, 2, 2))
    (folder / "t.py").write_text(FACTORIES)
    return write_job(folder, DATASET, TEACHER.format(function=function), cache=cache)


@pytest.mark.parametrize("function", ["by_torch", "by_numpy", "by_python"])
def test_a_function_that_draws_its_weights_is_refused(tmp_path: Path, function: str) -> None:
    with pytest.raises(BadTeacher) as caught:
        build(write(tmp_path, function))
    assert caught.value.what == f"{tmp_path}/t.py:{function} draws its weights anew each time that it is called"
    assert caught.value.do is not None
    assert 'weights = "big.safetensors"' in caught.value.do
    assert not list((tmp_path / "cache").rglob("weights.json"))


def test_a_function_that_seeds_itself_is_a_teacher(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    assert build(write(tmp_path, "seeded")).exit_code == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_file_that_changes_behind_the_function_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text("1")
    job = write(tmp_path, "from_a_file")
    build(job)
    cache = Cache.open(str(tmp_path / "cache"))
    cache.objects.delete(ShardKey("d", "t", "plain", 1).commit_path)
    (tmp_path / "inner").write_text("2")  # and no file that the cache knows
    cached_teacher.cache_clear()  # as on another worker, or another day
    with pytest.raises(StaleCache) as caught:
        build(job)
    assert caught.value.what.startswith(
        "teacher t has other weights here than those that its shards of d were made with"
    )
    assert cache.committed("d", "t") == {0}


def test_a_shard_of_other_weights_is_not_read(tmp_path: Path) -> None:
    for value in ("1", "2"):
        (tmp_path / "inner").write_text(value)
        cached_teacher.cache_clear()
        build(write(tmp_path, "from_a_file", cache=value))
    one, two = (Cache.open(str(tmp_path / value)) for value in ("1", "2"))
    one.objects.delete("d/t/weights.json")
    one.objects.put("d/t/weights.json", two.objects.get("d/t/weights.json"))
    with pytest.raises(CorruptObject, match=r"was made by a teacher with other weights than weights.json promises"):
        one.catalogue().read_commits("d", "t")


@pytest.mark.parametrize("exchanged", [True, False], ids=["exchanged", "lost"])
def test_a_promise_of_weights_that_is_exchanged_or_lost_is_told_and_no_shard_is_blamed(
    tmp_path: Path, exchanged: bool
) -> None:
    build(write(tmp_path, "seeded"))
    cache = Cache.open(str(tmp_path / "cache"))
    cache.objects.delete("d/t/weights.json")
    if exchanged:
        cache.objects.put("d/t/weights.json", WeightsSpec(weights="0" * 32).to_json())
    with pytest.raises(CorruptObject) as caught:
        verify(Cache.open(cache.url))
    told = "is not that of its shards" if exchanged else "is not there"
    assert caught.value.what == f"{cache.url}/d/t/weights.json {told}"


def test_a_promise_that_is_exchanged_costs_a_teacher_of_one_shard_nothing(tmp_path: Path) -> None:
    build(write(tmp_path, "seeded"))
    cache = Cache.open(str(tmp_path / "cache"))
    for shard in cache.committed("d", "t") - {0}:
        cache.objects.delete(ShardKey("d", "t", "plain", shard).commit_path)
    other = cache.teacher("d", "t").model_copy(update={"model": {"factory": "of another"}})
    cache.objects.delete("d/t/teacher.json")
    cache.objects.put("d/t/teacher.json", other.to_json())
    with pytest.raises(CorruptObject) as caught:
        verify(Cache.open(cache.url))
    assert caught.value.what == f"{cache.url}/d/t/teacher.json is not that of its shards"


def test_every_tensor_counts_whatever_its_type() -> None:
    def model(dtype: torch.dtype = torch.float32, buffer: float = 0.0) -> torch.nn.Module:
        made = torch.nn.Linear(2, 1)
        torch.nn.init.zeros_(made.weight)
        torch.nn.init.zeros_(made.bias)
        made.register_buffer("mask", torch.tensor([True, False]), persistent=False)
        made.register_buffer("scale", torch.tensor(buffer, dtype=torch.bfloat16))
        return made.to(dtype)

    digests = [weights_digest(made) for made in (model(), model(), model(buffer=1.0), model(torch.float64))]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_lost_promise_is_not_made_anew_from_other_weights(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text("1")
    job = write(tmp_path, "from_a_file")
    build(job)
    cache = Cache.open(str(tmp_path / "cache"))
    cache.objects.delete(ShardKey("d", "t", "plain", 1).commit_path)
    cache.objects.delete("d/t/weights.json")
    report = build(job)
    assert (report.built, report.exit_code) == (0, 1)
    assert "d/t/weights.json is not there" in report.failed[0]
    assert cache.catalogue().committed("d", "t") == {0}


def test_a_dataset_that_is_deleted_and_built_again_has_its_promise_again(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text("1")
    job = write(tmp_path, "from_a_file")
    for _ in range(2):  # in one process, as a worker that lives on
        build(job)
        assert (tmp_path / "cache/d/t/weights.json").exists()
        shutil.rmtree(tmp_path / "cache/d")


def test_tensors_of_other_layouts_are_digested_and_those_without_values_refused() -> None:
    def model(buffer: torch.Tensor) -> torch.nn.Module:
        made = torch.nn.Module()
        made.register_buffer("b", buffer)
        return made

    values = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert weights_digest(model(values.to_sparse())) == weights_digest(model(values))
    weights_digest(model(torch.tensor([1 + 2j]).conj()))
    with pytest.raises(BadTeacher, match="the teacher's b holds no values"):
        weights_digest(model(torch.empty(2, device="meta")))
