"""Builds of text: one tokenizer, learned once; growth; and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from storage.cache import Cache
from storage.cache.verify import verify
from storage.datasets.text import blocks as text_module
from storage.datasets.text import files as files_module
from storage.errors import BadRequest, BadTeacher, CorruptObject, MissingSource, StaleCache
from storage.language.tokenizer import train_tokenizer
from tests.conftest import Program
from tests.language.toys import TEACHERS, counting_cache, counting_teacher, write_counting
from tests.teacher_cache.toys import Silent, build, contents, write_job

VERSE = "Full fathom five thy father lies; of his bones are coral made.\n" * 12

TEXT = """[[dataset]]
name = "train"
kind = "text"
path = "texts"
block = 16
long_documents = "split"
rows_per_shard = 4
train_tokenizer = { vocabulary = 290 }
"""
HELD = """[[dataset]]
name = "held"
kind = "text"
path = "held.txt"
block = 16
long_documents = "split"
tokenizer_of = "train"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text(VERSE)
    (tmp_path / "held.txt").write_text(VERSE[:80])
    return tmp_path


def built(folder: Path, *sections: str) -> Cache:
    assert build(write_job(folder, *sections)).exit_code == 0
    return Cache.open(str(folder / "cache"))


def test_a_tokenizer_is_learned_once_and_shared(folder: Path) -> None:
    cache = built(folder, TEXT, HELD)
    train, held = cache.dataset("train"), cache.dataset("held")
    assert (train.vocabulary, train.classes) == (290, [])
    assert train.tokenizer == held.tokenizer is not None
    assert (folder / "cache/train/tokenizer.json").read_bytes() == (folder / "cache/held/tokenizer.json").read_bytes()


def test_a_tokenizer_is_taken_from_a_dataset_that_only_the_cache_has(folder: Path) -> None:
    learned = built(folder, TEXT).dataset("train").tokenizer
    assert built(folder, HELD).dataset("held").tokenizer == learned


def test_a_second_build_neither_learns_nor_tokenises(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(folder, TEXT, HELD)
    for module, name in ((files_module, "train_tokenizer"), (text_module, "encoder")):
        monkeypatch.setattr(module, name, lambda *given, name=name, **options: pytest.fail(f"{name} again"))
    assert build(write_job(folder, TEXT, HELD)).built == 0


def test_a_new_file_is_new_rows_in_the_old_tokenizer(folder: Path) -> None:
    cache = built(folder, TEXT)
    before, tokenizer = contents(folder / "cache"), cache.dataset("train").tokenizer
    (folder / "texts/0.txt").write_text("A sea-change into something rich and strange " * 9)
    built(folder, TEXT)
    after = contents(folder / "cache")
    assert {key: after[key] for key in before} == before
    assert len(after) > len(before)
    assert cache.dataset("train").tokenizer == tokenizer
    assert cache.samples().of("train")["sample_id"].to_list()[-1].startswith("0.txt:")


def test_changed_text_is_refused_and_a_touch_is_not(folder: Path) -> None:
    built(folder, TEXT)
    (folder / "texts/a.txt").write_text(VERSE)  # the same words, a moment later
    assert build(write_job(folder, TEXT)).built == 0
    (folder / "texts/a.txt").write_text(VERSE.replace("coral", "pearls"))
    with pytest.raises(StaleCache, match="has changed under the cache"):
        build(write_job(folder, TEXT))


def test_two_builds_of_one_text_are_the_same_bytes(folder: Path) -> None:
    built(folder, TEXT, HELD)
    one = contents(folder / "cache")
    build(write_job(folder, TEXT, HELD, cache="other"))
    assert contents(folder / "other") == one


@pytest.mark.parametrize(
    ("old", "new"),
    [("290", "300"), ("block = 16", "block = 8"), ('"split"', '"split"\npart = [0.0, 0.5]')],
)
def test_another_job_for_the_same_cache_is_refused(folder: Path, old: str, new: str) -> None:
    built(folder, TEXT)
    with pytest.raises(StaleCache):
        build(write_job(folder, TEXT.replace(old, new)))


def test_another_tokenizer_for_the_same_cache_is_refused(folder: Path) -> None:
    (folder / "t.json").write_bytes(train_tokenizer([VERSE], 270, "<|endoftext|>"))
    section = TEXT.replace("train_tokenizer = { vocabulary = 290 }", 'tokenizer = "t.json"')
    built(folder, section)
    (folder / "t.json").write_bytes(train_tokenizer([VERSE], 271, "<|endoftext|>"))
    with pytest.raises(StaleCache) as error:
        build(write_job(folder, section))
    assert "tokenizer" in str(error.value.what)


def test_a_tokenizer_that_another_build_left_is_not_taken_for_ones_own(folder: Path) -> None:
    (folder / "cache/train").mkdir(parents=True)
    Cache.create(str(folder / "other"))
    (folder / "cache/cache.json").write_bytes((folder / "other/cache.json").read_bytes())
    (folder / "cache/train/tokenizer.json").write_bytes(train_tokenizer(["other"], 270, "<|endoftext|>"))
    with pytest.raises(StaleCache, match="another tokenizer than this job's"):
        build(write_job(folder, TEXT))


@pytest.mark.parametrize("damage", [b"{}", b"", None])
def test_a_damaged_tokenizer_in_a_cache_is_corrupt(folder: Path, damage: bytes | None) -> None:
    cache = built(folder, TEXT)
    path = folder / "cache/train/tokenizer.json"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(CorruptObject, match=r"tokenizer\.json"):
        cache.tokenizer("train")


def test_validation_text_before_its_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(MissingSource) as error:
        build(write_job(folder, HELD, TEXT))
    assert error.value.do == "put [[dataset]] train before held"


@pytest.mark.parametrize("what", ["none", "other", "right"])
def test_a_teacher_speaks_the_tokenizer_of_the_text_or_is_refused(folder: Path, what: str) -> None:
    built(folder, TEXT)
    (folder / "counting.py").write_text(TEACHERS)
    (folder / "other.json").write_bytes(train_tokenizer(["x"], 290, "<|endoftext|>"))
    named = {"none": "", "other": 'tokenizer = "other.json"', "right": 'tokenizer = "cache/train/tokenizer.json"'}
    job = write_job(folder, TEXT, counting_teacher(ids=290, extra=named[what]))
    if what == "right":
        assert build(job).exit_code == 0
        return
    said = {"none": "does not say which tokenizer it has", "other": "another tokenizer than dataset train"}
    with pytest.raises(BadRequest, match=said[what]):
        build(job)


def test_a_factory_that_is_to_speak_a_tokenizer_not_yet_learned_is_told_how_to_name_it(folder: Path) -> None:
    (folder / "counting.py").write_text(TEACHERS)
    with pytest.raises(BadRequest, match="does not say which tokenizer it has") as error:
        build(write_job(folder, TEXT, counting_teacher(ids=290)))
    learned = folder / "cache/train/tokenizer.json"
    assert str(error.value.expected).endswith("(this job)")
    assert str(error.value.do).endswith(f'cache build without the teacher first, then tokenizer = "{learned}"')
    built(folder, TEXT)
    built(folder, TEXT, counting_teacher(ids=290, extra=f'tokenizer = "{learned}"'))


def test_a_student_of_another_tokenizer_is_refused_as_a_teacher(folder: Path) -> None:
    built(folder, TEXT)
    (folder / "student").mkdir()
    (folder / "student/student.json").write_text(json.dumps({"format_version": 1, "tokenizer": "0" * 32}))
    (folder / "student/student.safetensors").write_bytes(b"")
    with pytest.raises(BadRequest) as error:
        build(write_job(folder, TEXT, f'[[teacher]]\nname = "s"\nstudent = "{folder}/student"\n'))
    assert "0" * 32 in str(error.value.found)


@pytest.mark.parametrize(("padding", "fault"), [(6, ""), (6, "padding at -inf"), (0, "object")])
def test_a_padded_vocabulary_and_an_object_with_logits_are_taken(tmp_path: Path, padding: int, fault: str) -> None:
    cache = counting_cache(tmp_path, counting_teacher(padding=padding, fault=fault))
    num_labels = int((cache.read_labels("counting", 0) >= 0).sum())
    assert cache.read_targets("counting", "right", 0)["logits"].shape == (num_labels, 10)


@pytest.mark.parametrize("fault", ["", "padding at -inf"])
def test_per_sample_statistics_of_a_padded_vocabulary_are_over_its_classes(tmp_path: Path, fault: str) -> None:
    cache = counting_cache(tmp_path, counting_teacher(padding=6, scale=2.0, fault=fault))
    (table,) = cache.samples().of("counting", ["right"]).select("^right_.*$").unique().head(1).rows(named=True)
    total = math.log(math.exp(2.0) + 9)  # over the ten classes; the next one is at 2, the others and the padding at 0
    sure = math.exp(2.0 - total)
    assert table["right_label_log_probability"] == pytest.approx(2.0 - total)
    assert table["right_top_probability"] == pytest.approx(sure)
    assert table["right_entropy"] == pytest.approx(total - 2.0 * sure)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"ids": 9}, "9"),
        ({"fault": "flat"}, "(4, 10)"),
        ({"fault": "short"}, "(4, 11, 10)"),
    ],
)
def test_a_teacher_whose_output_is_not_one_row_of_logits_a_token_is_refused(
    tmp_path: Path, arguments: dict[str, Any], found: str
) -> None:
    with pytest.raises(BadTeacher) as error:
        counting_cache(tmp_path, counting_teacher(extra="batch_size = 4", **arguments))
    assert found in str(error.value.found)


def test_a_pooled_feature_of_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be asked so"):
        counting_cache(tmp_path, counting_teacher(extra='features = { f = { layer = "x" } }'))


def test_too_many_lines_that_cannot_be_read_stop_the_build(folder: Path) -> None:
    (folder / "d.jsonl").write_bytes(b'{"t": "a"}\n\xff\n')
    section = TEXT.replace('"texts"', '"d.jsonl"\ncolumn = "t"')
    with pytest.raises(BadRequest) as error:
        build(write_job(folder, section))
    assert "d.jsonl line 2: is not UTF-8: byte 0xff at position 0" in str(error.value.found)
    assert build(write_job(folder, section + "max_quarantined = 0.5\n")).exit_code == 3
    assert (Cache.open(str(folder / "cache")).read_labels("train", 0)[1] == -1).all()


def test_a_cache_of_text_verifies(folder: Path) -> None:
    cache = built(folder, TEXT, HELD)
    assert not verify(cache).bad


def test_a_build_counts_texts_that_spell_out_a_special_token(folder: Path) -> None:
    lines = [{"t": text} for text in ("a<|endoftext|>b", "<|endoftext|>", "<|endoftext|><|endoftext|>", "c")]
    (folder / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    section = TEXT.replace('"texts"', '"d.jsonl"\ncolumn = "t"')
    watcher = Silent()
    build(write_job(folder, section), watcher=watcher)
    told = [note for note in watcher.notes if note.startswith("warning: train: 3 texts spell out <|endoftext|>")]
    assert len(told) == 1


def test_a_build_ends_by_saying_which_losses_its_encodings_serve(tmp_path: Path, program: Program) -> None:
    job = write_job(
        tmp_path, write_counting(tmp_path), counting_teacher(scale=3.0, extra='encoding = { kind = "sparse", k = 3 }')
    )
    ended = program("cache", "build", job)
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.replace(str(tmp_path), "").splitlines())) <= 80
    text = " ".join(ended.out.split())
    assert "right serves at T = 1: kd, marginal_smoothing, topk_biased, dkd, nkd, jsd" in text
    assert "not: random_sampling, stratified, dist, standardised, reverse_kl, logit_mse" in text
    assert "look at" not in text
    assert "serves" not in program("cache", "build", job).out  # nothing is new


def test_a_build_of_a_teacher_of_tokens_near_chance_speaks_of_its_tokenizer(tmp_path: Path, program: Program) -> None:
    job = write_job(tmp_path, write_counting(tmp_path), counting_teacher(step=2))
    text = " ".join(program("cache", "build", job).out.split())
    assert "near chance: perplexity" in text
    assert "look at whether teacher and dataset have one tokenizer" in text
    assert "mean and std" not in text
