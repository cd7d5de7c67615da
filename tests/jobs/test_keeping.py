"""`student train` with `keep`, from a bucket that cannot be written: the second command fetches no shard."""

from __future__ import annotations

from pathlib import Path

from storage.format.objects import open_objects
from tests.conftest import Program
from tests.faulty_store import FaultyStore
from tests.student_train.toys import Recipe, write_cache

JOB = """
cache = "{cache}"
runs = "{runs}"
train = "toy/train"
validation = "toy/validation"
residency = "stream"
window_shards = 2
{keep}
[[student]]
name = "a"
architecture = "mlp"
options = {{ hidden = [{hidden}] }}
epochs = 2
objective = [{{ loss = "kd", teacher = "sage", temperature = 2.0 }}]
"""


def test_the_second_training_takes_its_shards_from_this_machine(
    tmp_path: Path, bucket: str, faulty: FaultyStore, program: Program
) -> None:
    write_cache(tmp_path / "cache", Recipe(rows=48, rows_per_shard=16))
    here, there = open_objects(str(tmp_path / "cache")), open_objects(bucket)
    for info in here.walk():
        there.put(info.path, here.get(info.path))
    (tmp_path / "scratch").mkdir()

    def train(runs: str, *, keeps: bool = True) -> tuple[bytes, int, str]:
        """Return the weights, how many requests for shards there were, and what was told."""
        keep = 'keep = "scratch"\nkeep_bytes = 1_000_000' if keeps else ""
        job = tmp_path / f"{runs}.toml"
        job.write_text(JOB.format(hidden=8, cache=bucket, runs=runs, keep=keep))
        faulty.will("403 AccessDenied", times=10**6, strikes=lambda method, path: method not in ("GET", "HEAD"))
        ended = program("student", "train", job)
        assert (ended.code, faulty.times) == (0, 10**6), ended.err  # a bucket that cannot be written is enough
        weights = (tmp_path / runs / "a" / "student.safetensors").read_bytes()
        return weights, sum(".zarr.zip" in path for _, path in faulty.asked), " ".join(ended.err.split())

    plain, asked, told = train("plain", keeps=False)
    assert "shards:" not in told
    first, fetched, told = train("first")
    assert (first, 0 < fetched < asked) == (plain, True)
    assert "from the store" in told
    second, fetched, told = train("second")
    assert (second, fetched) == (plain, 0)
    assert ", 0 B from the store" in told
    damaged = max((tmp_path / "scratch").rglob("*.kept"), key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    third, fetched, told = train("third")
    assert (third, fetched) == (plain, 1)
    assert "was damaged on its disk; it was dropped" in told.replace("- ", "-")
