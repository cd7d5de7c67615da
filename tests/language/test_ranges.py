"""Builds of text in ranges of bytes: workers count the rows, a text may grow, and caches of before are used on."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.cache.status import read_info, read_status
from storage.cache.verify import verify
from storage.datasets.text import blocks
from storage.errors import BadRequest, MissingSource, StaleCache
from storage.format.rows import read_plan
from storage.format.shards import ShardKey
from student_train.options.sections import DataOptions
from student_train.preparing.request import Request
from student_train.running.train import train_students
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.building.survey import prepare_build
from tests.language.toys import TEACHERS, counting_teacher, small_gpt
from tests.teacher_cache.toys import Silent, build, contents, run_program, write_job

LINES = [f"Full fathom five thy father lies; line {number} of his bones are coral made.\n" for number in range(60)]
TEXT = """[[dataset]]
name = "verse"
kind = "text"
path = "{path}"
block = 16
long_documents = "split"
rows_per_shard = 8
validation = 0.25
train_tokenizer = {{ vocabulary = 290 }}
"""
OF_TOKENIZER = "train_tokenizer = { vocabulary = 290 }"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "verse.txt").write_text("".join(LINES))
    (tmp_path / "counting.py").write_text(TEACHERS)
    return tmp_path


def section(path: str = "verse.txt", **options: str) -> str:
    return TEXT.format(path=path) + "".join(f"{key} = {value}\n" for key, value in options.items())


def jsonl(path: Path, *texts: str) -> None:
    path.write_text("".join(json.dumps({"t": text}) + "\n" for text in texts))


def built(folder: Path, *sections: str, **options: Any) -> Cache:
    report = build(write_job(folder, *sections), **options)
    assert report.exit_code == 0, report
    return Cache.open(str(folder / "cache"))


def tokens(cache: Cache, dataset: str = "verse") -> list[int]:
    """Return all tokens of a dataset but those between documents."""
    shards = [cache.read_inputs(dataset, shard) for shard in sorted(cache.committed(dataset))]
    return [int(token) for token in np.concatenate(shards).ravel() if token]


def test_every_word_is_in_one_shard_and_its_rows_are_counted_by_its_commit(folder: Path) -> None:
    cache = built(folder, section())
    from tokenizers import Tokenizer

    learned = Tokenizer.from_str((folder / "cache/verse/tokenizer.json").read_text())
    assert learned.decode(tokens(cache)) == "".join(LINES)
    catalogue = cache.catalogue()
    shards, size = catalogue.shards("verse"), (folder / "verse.txt").stat().st_size
    assert (len(shards), shards[-1].stop) == (-(-size // (8 * 16 * 4)), size)
    commits = catalogue.read_commits("verse")
    assert [commit.start for commit in commits] == [shard.start for shard in shards]
    rows = sum(commit.stop - commit.start for commit in commits)
    assert read_status(catalogue)["rows"].to_list() == [rows]
    assert read_info(catalogue)["datasets"]["verse"]["rows"] == rows
    assert not verify(cache).bad


def test_a_plan_makes_no_tokens_and_reads_no_more_than_it_is_allowed_to_learn_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "encoder", lambda *_, **options: pytest.fail("tokenised by the command"))
    read: list[int] = []
    monkeypatch.setattr(blocks, "sample_texts", lambda parts, most, seed: read.append(most) or ["a", "b"])
    text = section().replace("{ vocabulary = 290 }", "{ vocabulary = 290, sample_mb = 3 }")
    job = read_job(write_job(folder, text), CacheJob)
    (stage,) = prepare_build(BuildRequest(job.cache, "job.toml", tuple(job.dataset), ())).stages
    size = (folder / "verse.txt").stat().st_size
    assert read == [3 * 2**20]
    assert len(stage.todo) == -(-size // 512)


def test_where_a_range_ends_nobody_is_asked_for_what_comes_next_and_the_text_ends_once(folder: Path) -> None:
    cache = built(folder, section())
    ends = []
    for shard in sorted(cache.committed("verse")):
        inputs, labels = cache.read_inputs("verse", shard).ravel(), cache.read_labels("verse", shard).ravel()
        last = np.flatnonzero(inputs)[-1]
        ends.append(int(labels[last]))
        assert (labels[:last] == inputs[1 : last + 1]).all()
    assert ends == [-1] * (len(ends) - 1) + [0]


def test_a_shard_without_a_row_is_a_shard_as_any_other(folder: Path) -> None:
    # only the first shard of those that a long line is in has it
    jsonl(folder / "d.jsonl", *LINES[:20], " ".join(LINES[:40]), *LINES[20:40])
    text = section("d.jsonl", column='"t"')
    learned = Path(built(folder, text).url) / "verse/tokenizer.json"
    teacher = counting_teacher(ids=290, extra=f'tokenizer = "{learned}"')
    cache = built(folder, text, teacher)
    catalogue = cache.catalogue()
    sizes = [commit.stop - commit.start for commit in catalogue.read_commits("verse")]
    assert 0 in sizes
    assert sizes == [commit.stop - commit.start for commit in catalogue.read_commits("verse", "right")]
    assert not verify(cache).bad
    audited = run_program("cache", "verify", cache.url, "--teacher", write_job(folder, text, teacher), "--rows", 99)
    assert audited.returncode == 0, audited.stderr
    data = DataOptions.model_validate({"train": "verse/train", "validation": "verse/validation"})
    student = small_gpt(options={"depth": 1, "width": 8, "heads": 2, "end_of_text": 0}, epochs=1)
    train_students(Request(cache, folder / "runs", data, (student,), "cpu"))
    assert (folder / "runs/gpt/student.safetensors").exists()


def test_whole_lines_that_are_added_are_new_shards_and_nothing_else(folder: Path) -> None:
    cache = built(folder, section())
    before, text = contents(folder / "cache"), tokens(cache)
    with (folder / "verse.txt").open("a") as file:
        file.write("Sea-nymphs hourly ring his knell\n" * 20)
    watcher = Silent()
    built(folder, section(), watcher=watcher)
    after = contents(folder / "cache")
    assert {key: after[key] for key in before} == before
    assert len(after) > len(before)
    assert tokens(cache)[: len(text)] == text
    assert "new rows; a text is counted when it is read" in "\n".join(watcher.notes)
    # again in one go, dropped and made anew, each is as it was
    key = ShardKey("verse", None, "plain", 0)
    cache.objects.delete(key.commit_path)
    built(folder, section())
    assert contents(folder / "cache") == after


def test_a_line_that_goes_on_is_a_change(folder: Path) -> None:
    (folder / "verse.txt").write_text("".join(LINES).rstrip("\n"))
    built(folder, section())
    with (folder / "verse.txt").open("a") as file:
        file.write(" and more\n")
    with pytest.raises(StaleCache) as error:
        build(write_job(folder, section()))
    assert str(error.value.found).startswith("1 shard with other content: verse.txt from byte")
    assert "perhaps a last line without a line end goes on there" in str(error.value.found)
    assert f"delete {folder}/cache/verse, of which no teacher was asked" in str(error.value.do)
    shutil.rmtree(folder / "cache/verse")  # as it says
    assert build(write_job(folder, section())).exit_code == 0


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_lines_behind_one_without_a_line_end_are_added(folder: Path, line_end: str) -> None:
    lines = [json.dumps({"t": f"line {number}"}) for number in range(9)]
    asked = section("d.jsonl", column='"t"', pack="false")
    (folder / "d.jsonl").write_text("\n".join(lines[:6]), newline="")
    built(folder, asked)
    for number in (6, 7, 8):  # night after night
        with (folder / "d.jsonl").open("a", newline="") as file:
            file.write(line_end + lines[number])
        assert build(write_job(folder, asked)).built == 1
    assert len(Cache.open(str(folder / "cache")).samples().of("verse")) == 9
    os.utime(folder / "d.jsonl")
    watcher = Silent()
    assert build(write_job(folder, asked), watcher=watcher).built == 0
    assert not [note for note in watcher.notes if "new rows" in note]  # it was touched, no more
    (folder / "d.jsonl").write_text((folder / "d.jsonl").read_text().replace("line 5", "line x"))
    with pytest.raises(StaleCache):
        build(write_job(folder, asked))


def test_a_touch_and_a_change_of_one_byte_are_told_apart(folder: Path) -> None:
    built(folder, section())
    os.utime(folder / "verse.txt")
    assert build(write_job(folder, section())).built == 0
    (folder / "verse.txt").write_text("".join(LINES).replace("line 30", "line 3O"))
    with pytest.raises(StaleCache, match=r"1 shard with other content: verse\.txt from byte 2048 on"):
        build(write_job(folder, section()))


@pytest.mark.parametrize(("mend", "built_again"), [('{"t": "b"}  ', True), ('{"t": "b"}\n{}', False)])
def test_a_line_that_is_mended_in_its_place_is_read_again(folder: Path, mend: str, built_again: bool) -> None:
    lines = ['{"t": "a"}', '{"t": "b" !}', '{"t": "c"}']
    (folder / "d.jsonl").write_text("\n".join(lines) + "\n")
    asked = section("d.jsonl", column='"t"', pack="false", max_quarantined="0.5")
    report = build(write_job(folder, asked))
    assert (report.exit_code, report.quarantined["verse"]["row"].len()) == (3, 1)
    lines[1] = mend if built_again else lines[1]
    lines[0] = lines[0] if built_again else '{"t": "x"}'
    (folder / "d.jsonl").write_text("\n".join(lines) + "\n")
    if not built_again:
        with pytest.raises(StaleCache):
            build(write_job(folder, asked))
        return
    assert build(write_job(folder, asked)).exit_code == 0
    assert len(tokens(Cache.open(str(folder / "cache")))) == 3


def test_parts_of_a_build_make_what_one_build_makes(folder: Path) -> None:
    whole = contents(Path(built(folder, section()).url))
    shutil.rmtree(folder / "cache")
    for part in (1, 0):
        build(write_job(folder, section()), part=(part, 2))
    assert contents(folder / "cache") == whole


def test_files_are_texts_of_their_own_and_share_shards(folder: Path) -> None:
    (folder / "texts").mkdir()
    for number in range(30):
        (folder / f"texts/{number:02d}.txt").write_text(LINES[number])
    cache = built(folder, section("texts"))
    assert 1 < len(cache.committed("verse")) < 30
    samples = cache.samples().of("verse")["sample_id"].to_list()
    assert {name.partition(":")[0] for name in samples} == {f"{number:02d}.txt" for number in range(30)}
    assert len(read_plan(cache.objects, "verse").extents) == 30


def test_a_text_of_nothing_is_told(folder: Path) -> None:
    (folder / "d.jsonl").write_text("\n" * 500)
    (folder / "t.json").write_bytes((Path(built(folder, section()).url) / "verse/tokenizer.json").read_bytes())
    shutil.rmtree(folder / "cache")
    text = section("d.jsonl", column='"t"').replace(OF_TOKENIZER, 'tokenizer = "t.json"')
    with pytest.raises(MissingSource, match="dataset verse is empty"):
        build(write_job(folder, text))


def test_more_rows_than_bytes_are_refused(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    many = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "y": 1}, unk_token="y"))
    many.normalizer = normalizers.Replace("a", "y" * 50)
    many.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    many.save(str(folder / "t.json"))
    (folder / "verse.txt").write_text("aaaa")
    text = section().replace("block = 16", "block = 2").replace(OF_TOKENIZER, 'tokenizer = "t.json"')
    with pytest.raises(BadRequest, match="makes more rows than there are bytes of text"):
        build(write_job(folder, text))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(Path(__file__).parents[1] / "data/whole_texts.zip") as archive:
        archive.extractall(tmp_path / "old")
    for name in ("texts/a.txt", "asked.jsonl"):
        os.utime(tmp_path / "old" / name, ns=(10**18, 10**18))
    return tmp_path / "old"


def test_a_cache_of_before_is_whole_and_has_nothing_to_do(old: Path) -> None:
    done = run_program("cache", "build", old / "text.cache.toml", "--json")
    assert (done.returncode, json.loads(done.stdout)["built"]) == (0, 0), done.stderr
    cache = Cache.open(str(old / "cache"))
    assert not verify(cache).bad
    assert read_status(cache.catalogue())["rows_missing"].sum() == 0


def test_a_cache_of_before_is_asked_about_and_trained_on(old: Path) -> None:
    text = (old / "text.cache.toml").read_text()
    (old / "text.cache.toml").write_text(text.replace('name = "right"', 'name = "other"'))
    assert run_program("cache", "build", old / "text.cache.toml").returncode == 0
    cache = Cache.open(str(old / "cache"))
    assert cache.committed("verse", "other") == cache.committed("verse")
    data = DataOptions.model_validate({"train": "verse/train", "validation": "verse/validation"})
    student = small_gpt(options={"depth": 1, "width": 8, "heads": 2, "end_of_text": 0}, epochs=1)
    train_students(Request(cache, old / "runs", data, (student,), "cpu"))
    assert (old / "runs/gpt/student.safetensors").exists()


@pytest.mark.parametrize("change", ["a touch", "a new file", "a missing shard"])
def test_a_cache_of_before_goes_on_as_it_was_made(old: Path, change: str) -> None:
    before = contents(old / "cache")
    if change == "a touch":
        os.utime(old / "texts/a.txt")
    elif change == "a new file":
        (old / "texts/b.txt").write_text("more\n")
    else:
        for dataset in ("verse", "asked"):  # running text, and a prompt that is tokenised apart
            (old / f"cache/{dataset}/ingest/00000.parquet").unlink()
    done = run_program("cache", "build", old / "text.cache.toml", "--json")
    assert done.returncode == 0, done.stderr
    after = contents(old / "cache")
    assert {key: after[key] for key in before} == before
    assert len(after) - len(before) == (2 if change == "a new file" else 0)
    assert not verify(Cache.open(str(old / "cache"))).bad


def test_a_text_of_before_that_changed_is_refused_and_built_beside(old: Path) -> None:
    (old / "texts/a.txt").write_text((old / "texts/a.txt").read_text().replace("coral", "pearl"))
    done = run_program("cache", "build", old / "text.cache.toml")
    assert done.returncode == StaleCache.exit_code
    assert "has changed under the cache" in done.stderr
    done = run_program("cache", "build", old / "ingest.cache.toml", "--as", "beside")
    assert done.returncode == 0, done.stderr
    (beside,) = (path for path in old.iterdir() if "beside" in path.name)
    assert Cache.open(str(beside)).dataset("verse").byte_ranges
