"""What text becomes is told by a sample of it: shards are cut, and memory bounded, by tokens that it really has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.datasets.base import Density
from storage.datasets.chat import ChatSource
from storage.datasets.text import density as module
from storage.datasets.text.density import SAMPLED_BYTES, SPREAD, density_of
from storage.encodings import SparseEncoding
from storage.errors import BadRequest
from storage.format.committing import read_ragged
from storage.format.shards import ShardKey
from storage.format.specs import DatasetSpec
from storage.views import PLAIN
from teacher_cache.building.memory import _most_rows
from teacher_cache.building.prepared import BuildRequest, PreparedDataset
from teacher_cache.building.sources.cutting import default_cut
from teacher_cache.building.sources.growth import TARGET_SHARD_SITES
from teacher_cache.building.survey import prepare_build
from tests.chats.toys import CHATML, write_lines, write_model
from tests.teacher_cache.toys import build, contents, write_job

CHATS = """[[dataset]]
name = "chats"
kind = "chat"
path = "chats.jsonl"
tokenizer = "model"
length = 512
"""


def write_chats(folder: Path, number: int, times: int = 9) -> None:
    write_model(folder / "model", CHATML)
    question, answer = "What is it that you ask of me, my lord? " * times, "Nothing at all. "
    both = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    write_lines(folder / "chats.jsonl", *({"messages": both} for _ in range(number)))


def prepared(folder: Path, section: str = CHATS) -> PreparedDataset:
    job = read_job(write_job(folder, section), CacheJob)
    return prepare_build(BuildRequest(job.cache, "job.toml", tuple(job.dataset), ())).stages[0].dataset


def test_what_a_sample_tells_is_what_is_built(tmp_path: Path) -> None:
    write_chats(tmp_path, 2_000)
    dataset = prepared(tmp_path)
    density, size = dataset.source.density(), (tmp_path / "chats.jsonl").stat().st_size
    assert size > 1.4 * SAMPLED_BYTES
    assert density is not None
    build(write_job(tmp_path, CHATS))
    cache, found = Cache.open(str(tmp_path / "cache")), []
    for shard, start, stop in dataset.rows.shards():
        arrays = read_ragged(cache.objects, cache.commit(ShardKey("chats", None, PLAIN, shard)), ["inputs", "labels"])
        sites = int(arrays["inputs"].lengths.sum())
        labelled = sum(int(np.count_nonzero(np.asarray(labels) >= 0)) for labels in arrays["labels"])
        found.append((len(arrays["inputs"].lengths), sites, labelled))
        rows, share = _most_rows(dataset, stop - start)
        assert sites <= rows * 512 <= 2 * sites + 2 * 512
        assert labelled <= share * rows * 512 <= 2 * labelled + 2 * 512
    told = [each * size for each in density]
    assert told == pytest.approx([sum(each) for each in zip(*found, strict=True)], rel=0.15)


def test_a_plan_is_cut_once_and_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_chats(tmp_path, 50)
    build(write_job(tmp_path, CHATS))
    before = contents(tmp_path / "cache")

    def looked(source: object) -> Density | None:
        raise AssertionError("looked at once more")

    monkeypatch.setattr("storage.datasets.text.files.measure_density", looked)
    build(write_job(tmp_path, CHATS))
    assert contents(tmp_path / "cache") == before


def test_what_stops_a_build_is_said_by_the_worker_and_the_bound_is_the_old_one(tmp_path: Path) -> None:
    write_chats(tmp_path, 800)
    lines = (tmp_path / "chats.jsonl").read_text()  # more than what is read to learn the shape
    (tmp_path / "chats.jsonl").write_text(lines + '{"messages": [], "conversations": []}\n' * 2000)
    dataset = prepared(tmp_path)
    assert dataset.source.density() is None
    assert _most_rows(dataset, 51_200)[1] == 1.0  # a token of each byte
    with pytest.raises(BadRequest, match="chats in several columns"):
        build(write_job(tmp_path, CHATS))


def test_no_more_than_a_sample_is_read_of_a_large_file(tmp_path: Path) -> None:
    write_chats(tmp_path, 3_000)
    (tmp_path / "chats").mkdir()
    line = (tmp_path / "chats.jsonl").read_bytes()
    (tmp_path / "chats/a.jsonl").write_bytes(line)
    with (tmp_path / "chats/b.jsonl").open("wb") as file:
        file.write(line)
        file.truncate(10 * 2**30)  # of which nothing is on a disk
    source = prepared(tmp_path, CHATS + "rows_per_shard = 1000000\n").source
    assert isinstance(source, ChatSource)
    spots = module._spots(source.model_copy(update={"path": tmp_path / "chats"}))
    assert sum(stop - start for _, start, stop, _ in spots) <= SAMPLED_BYTES
    assert len(spots) > 8


def test_spots_of_many_small_files_are_whole_files(tmp_path: Path) -> None:
    write_chats(tmp_path, 1)
    (tmp_path / "chats").mkdir()
    line = json.loads((tmp_path / "chats.jsonl").read_text())
    for number in range(40):
        write_lines(tmp_path / f"chats/{number}.jsonl", line)
    source = prepared(tmp_path, CHATS.replace("chats.jsonl", "chats")).source
    assert isinstance(source, ChatSource)
    assert all((start, last) == (0, True) for _, start, _, last in module._spots(source))


@pytest.mark.parametrize(
    ("density", "sites"),
    [
        (Density(0.001, 0.25, 0.25), TARGET_SHARD_SITES),  # text, all of it to be predicted
        (Density(0.001, 0.05, 0.01), TARGET_SHARD_SITES),  # much markup
        (Density(0.001, 0.9, 0.1), TARGET_SHARD_SITES),  # a token of nearly each byte
    ],
)
def test_a_shard_has_as_many_tokens_whatever_a_byte_is(density: Density, sites: int) -> None:
    about = {"name": "a", "source": {}, "classes": [], "input_dtype": "int32", "vocabulary": 128_256}
    spec = DatasetSpec.model_validate(about | {"input_shape": (2048,), "uses": ("own_length", "byte_ranges")})
    cut = default_cut(spec, 10**10, 1_000, [SparseEncoding(k=64)], density)
    assert cut * density.sites == pytest.approx(sites, rel=0.01)


def test_a_part_with_more_than_the_rest_is_within_the_bound_too() -> None:
    spots = [(1_000, 1, 10, 10)] * 9 + [(1_000, 5, 300, 300)]
    density = density_of(spots)
    assert density is not None
    assert SPREAD * density.sites * 1_000 == pytest.approx(300)
