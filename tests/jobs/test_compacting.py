"""A compacted cache has the same rows in fewer shards, is built on by the same job, and trains the same students."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.cache import Cache
from storage.cache.copies import compact as room
from storage.cache.copies.compact import compact
from storage.cache.verify import verify
from storage.errors import BadRequest, StaleCache, StorageFailure
from storage.format.objects import LocalObjects
from tests.conftest import Program
from tests.language.toys import counting_teacher, write_counting
from tests.teacher_cache.toys import Silent, build, teacher_section, write_digits, write_job, write_teacher
from tests.texts.toys import looking_teacher, write_texts

VIEWS = '[views]\ncount = 2\ntransforms = [{ kind = "pad_crop", padding = 1 }]\n'


def students(folder: Path, cache: str, name: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(
        f'cache = "{cache}"\nruns = "runs-{name}"\ntrain = "digits"\nvalidation = "digits"\n'
        '[[student]]\nname = "s"\narchitecture = "mlp"\nepochs = 2\nbatch_size = 8\n'
        'objective = [{ loss = "kd", teacher = "toy", temperature = 2.0 }]\n'
    )
    return path


def test_students_of_a_compacted_cache_are_the_same_to_the_last_bit(
    kitchen: Path, program: Program, tmp_path: Path
) -> None:
    ended = program("cache", "compact", kitchen / "cache", tmp_path / "large", "--rows", 32, "--dry-run")
    assert (ended.out, (tmp_path / "large").exists()) == ("digits: 3 shards would become 2\n", False)
    assert program("cache", "compact", kitchen / "cache", tmp_path / "large", "--rows", 32).code == 0
    assert program("cache", "compact", kitchen / "cache", tmp_path / "whole").out == "2 shards of 6\n"
    large = Cache.open(str(tmp_path / "large"))
    assert [tuple(shard)[1:] for shard in large.catalogue().shards("digits")] == [(0, 32), (32, 40)]
    for name in ("large", "whole"):
        assert verify(Cache.open(str(tmp_path / name))).bad == ()
        assert program("cache", "diff", kitchen / "cache", tmp_path / name).code == 0
    before = {info.path: info.version for info in large.objects.walk()}
    again = program("cache", "compact", kitchen / "cache", tmp_path / "large", "--rows", 32)
    assert (again.code, again.out) == (0, "0 shards of 0; 4 were there already\n")
    assert {info.path: info.version for info in large.objects.walk()} == before
    weights = []
    for name, cache in (("small", kitchen / "cache"), ("large", tmp_path / "large"), ("whole", tmp_path / "whole")):
        assert program("student", "train", students(tmp_path, str(cache), name)).code == 0
        weights.append((tmp_path / f"runs-{name}/s/student.safetensors").read_bytes())
    assert (weights[0] == weights[1], weights[0] == weights[2], len(weights[0]) > 1000) == (True, True, True)


def test_a_compaction_that_was_stopped_goes_on_and_takes_up_what_has_grown(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_teacher(tmp_path)
    job = write_job(tmp_path, write_digits(tmp_path, 40, rows_per_shard=4), VIEWS, teacher_section())
    assert build(job).exit_code == 0
    source, url, create = Cache.open(str(tmp_path / "cache")), str(tmp_path / "large"), LocalObjects.create

    def stop(self: LocalObjects, path: str, data: bytes) -> bool:
        if self.url == url and path.endswith("view-000/00001.parquet"):
            raise StorageFailure("no space left")
        return create(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "create", stop)
        with pytest.raises(StorageFailure):
            compact(source, url, Silent(), rows=12)
    large = Cache.open(url)
    assert (verify(large).bad, large.committed("digits", "toy", "view-000")) == ((), {0})
    found = compact(source, url, Silent(), rows=12)
    assert (found.there, found.shards, found.lacking, found.failed) == (5, 7, {}, [])
    assert (verify(large).bad, program("cache", "diff", source.url, url).code) == ((), 0)

    write_digits(tmp_path, 49, rows_per_shard=4)
    assert build(job).exit_code == 0
    found = compact(Cache.open(source.url), url, Silent(), rows=12)
    assert (found.there, found.shards) == (12, 3)
    assert [tuple(each)[1:] for each in large.catalogue().shards("digits")][-2:] == [(36, 40), (40, 49)]
    assert (verify(large).bad, program("cache", "diff", source.url, url).code) == ((), 0)
    # the same job goes on with it, and finds nothing to do
    text = job.read_text()
    job.write_text(text.replace('cache = "cache"', 'cache = "large"', 1))
    report = build(job)
    assert (report.exit_code, report.built) == (0, 0)


def test_what_is_missing_or_damaged_is_told_and_the_rest_is_compacted(
    kitchen: Path, program: Program, tmp_path: Path
) -> None:
    program("cache", "copy", kitchen / "cache", tmp_path / "small")
    small = Cache.open(str(tmp_path / "small"))
    small.objects.delete("digits/toy/plain/00002.parquet")
    ended = program("cache", "compact", small.url, tmp_path / "large", "--rows", 32, "--json")
    said = json.loads(ended.out)
    assert (ended.code, said["shards"], said["lacking"]) == (3, 3, {"digits/toy/plain": 1})
    for info in small.objects.list("digits/toy/plain").objects:
        if info.path.endswith(".zip") and "/00000-" in info.path:
            (Path(small.url) / info.path).write_bytes(b"x" * info.size_bytes)
    ended = program("cache", "compact", small.url, tmp_path / "other", "--rows", 32)
    assert (ended.code, ended.out.startswith("bad  digits/toy/plain/00000\n")) == (65, True)


def test_shards_that_cannot_be_joined_are_refused(
    kitchen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Cache.open(str(kitchen / "cache"))
    other = Cache.create(str(tmp_path / "other"))
    compact(source, str(tmp_path / "large"), Silent())
    compact(Cache.open(str(tmp_path / "large")), str(tmp_path / "large-2"), Silent())
    with pytest.raises(StaleCache):  # made of another cache
        compact(source, str(tmp_path / "large-2"), Silent())
    for url in (source.url, f"{source.url}/inside"):
        with pytest.raises(BadRequest):
            compact(source, url, Silent())
    assert other.catalogue().datasets == {}
    monkeypatch.setattr(type(source.dataset("digits")), "byte_ranges", True)
    with pytest.raises(BadRequest) as caught:
        room.plan_compaction(source.catalogue())
    assert "bytes of text" in caught.value.what


@pytest.mark.parametrize("kind", ["tokens", "texts of their own length"])
def test_rows_of_many_sites_and_of_their_own_length_are_joined_and_compared(
    kind: str, tmp_path: Path, program: Program
) -> None:
    (section, teacher) = (
        (write_counting(tmp_path), counting_teacher(extra='encoding = { kind = "dense" }', scale=3.0))
        if kind == "tokens"
        else (write_texts(tmp_path, 40), looking_teacher())
    )
    job = write_job(tmp_path, section, teacher)
    assert build(job).exit_code == 0
    source = Cache.open(str(tmp_path / "cache"))
    compact(source, str(tmp_path / "large"), Silent(), rows=1000)
    large = Cache.open(str(tmp_path / "large"))
    assert ({len(shards) for shards in large.catalogue().commits.values()}, verify(large).bad) == ({1}, ())
    assert program("cache", "diff", source.url, large.url).code == 0
    # the same answers, stored otherwise
    sparse = 'encoding = { kind = "sparse", k = 2 }'
    text = job.read_text().replace('encoding = { kind = "dense" }', "").replace('cache = "cache"', 'cache = "sparse"')
    job.write_text(text.replace("[cluster]", f"{sparse}\n[cluster]"))
    assert program("cache", "recode", large.url, job).code == 0
    said = json.loads(program("cache", "diff", source.url, tmp_path / "sparse", "--json").out)
    (gap,) = said["answers"]
    assert (gap["rows"], gap["identical"]) == (20 if kind == "tokens" else 40, 0)
    assert 0 <= gap["mean"] < 1e-3
