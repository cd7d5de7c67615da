"""Builds of texts with a class each: what is stored, at which length, and what a teacher is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import BadRequest, BadTeacher, StaleCache
from storage.format.shards import ShardKey
from storage.inputs.texts import pad
from storage.language.tokenizer import encoder
from teacher_cache.building.build import run_build
from teacher_cache.building.memory import _sizes, project_worker
from teacher_cache.building.prepared import BuildRequest
from teacher_cache.building.runners import run_inline
from teacher_cache.building.survey import prepare_build
from tests.teacher_cache.toys import Silent, build, contents, write_job
from tests.texts.toys import CLASSES, LENGTH, class_ids, looking_teacher, text_cache, texts, word_tokenizer, write_texts

DENSE = 'encoding = { kind = "dense", dtype = "fp32" }'
FEATURE = '[teacher.features]\nrow = { layer = "row", dtype = "fp32" }'


def expected_logits(rows: list[tuple[str, str]], length: int = LENGTH) -> np.ndarray:
    """Return what the toy teacher says of some texts, each by itself, without padding."""
    found = []
    for ids in encoder(word_tokenizer())([text for _, text in rows]):
        kept = ids[:length]
        found.append([5.0 * float((kept == i).sum()) + 0.01 * len(kept) for i in class_ids()])
    return np.array(found, np.float32)


def shards(cache: Cache) -> list[int]:
    return sorted(cache.committed("texts"))


def test_a_row_is_stored_at_its_own_length_without_padding(tmp_path: Path) -> None:
    cache = text_cache(tmp_path)
    spec = cache.dataset("texts")
    assert (spec.input_shape, spec.input_dtype, spec.uses) == ((LENGTH,), "int32", ("own_length",))
    assert (spec.task, spec.classes, spec.num_classes) == ("text_classification", CLASSES, 3)
    rows = [row for shard in shards(cache) for row in cache.read_ragged("texts", shard)]
    spelled = encoder(word_tokenizer())([text for _, text in texts(60)])
    assert [row.tolist() for row in rows] == [ids[:LENGTH].tolist() for ids in spelled]


def test_the_sample_table_says_how_long_a_row_is_and_what_was_cut(tmp_path: Path) -> None:
    samples = text_cache(tmp_path, length=4).samples().of("texts")
    sizes = [len(ids) for ids in encoder(word_tokenizer())([text for _, text in texts(60)])]
    assert samples["length"].to_list() == [min(size, 4) for size in sizes]
    assert samples["cut"].to_list() == [max(0, size - 4) for size in sizes]
    assert samples["label"].to_list() == [CLASSES.index(label) for label, _ in texts(60)]


def test_a_build_says_of_how_many_rows_something_was_cut_off(tmp_path: Path) -> None:
    job = read_job(write_job(tmp_path, write_texts(tmp_path, length=4)), CacheJob)
    request = BuildRequest(job.cache, "job.toml", tuple(job.dataset), ())
    progress = Silent()
    run_build(prepare_build(request), run_inline, progress)
    too_long = sum(len(ids) > 4 for ids in encoder(word_tokenizer())([text for _, text in texts(60)]))
    assert too_long
    assert progress.notes == [
        f"note: {too_long} rows of texts are longer than length = 4; what is behind it was cut off"
    ]
    again = Silent()
    run_build(prepare_build(request), run_inline, again)
    assert again.notes == []


def test_a_teacher_says_of_a_batch_what_it_says_of_each_row_alone(tmp_path: Path) -> None:
    cache = text_cache(tmp_path, looking_teacher(extra=f"{DENSE}\n{FEATURE}"))
    logits = np.concatenate([cache.read_targets("texts", "looking", s)["logits"] for s in shards(cache)])
    features = np.concatenate(
        [cache.read_targets("texts", "looking", s, names=["feature/row"])["feature/row"] for s in shards(cache)]
    )
    assert np.allclose(logits, expected_logits(texts(60)), atol=1e-6)
    assert np.array_equal(logits, features)
    samples = cache.samples().of("texts", ["looking"])
    assert samples["looking_top"].to_list() == samples["label"].to_list()


def test_rows_of_like_length_are_asked_together_and_come_back_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from teacher_cache.teachers.model import Teacher

    asked: list[list[int]] = []
    called = Teacher.hear

    def counted(self: Teacher, shown_B: torch.Tensor, *others: Any) -> object:
        asked.append((shown_B >= 0).sum(1).tolist())
        return called(self, shown_B, *others)

    monkeypatch.setattr(Teacher, "hear", counted)
    text_cache(tmp_path, count=16)
    assert [len(batch) for batch in asked] == [5, 5, 5, 1]
    lengths = [length for batch in asked for length in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_a_model_is_given_no_more_padding_than_the_longest_row_of_its_batch_needs() -> None:
    from storage.inputs import INPUTS

    shown_B = torch.tensor([[3, 4, 5, 6], [1, 2, -1, -1], [7, -1, -1, -1]], dtype=torch.int32)
    kind = INPUTS["texts"]
    tokens, mask = kind.spread(kind.arguments(kind.trimmed(shown_B[1:])))
    assert (tokens.tolist(), mask.tolist()) == ([[1, 2], [7, 0]], [[True, True], [True, False]])


def test_two_builds_of_the_same_texts_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        text_cache(tmp_path / name)
    one, other = (contents(tmp_path / name / "cache") for name in ("a", "b"))
    strip = [{path.split(".zarr")[-1]: value for path, value in o.items()} for key in one for o in (one[key],)]
    assert strip == [{path.split(".zarr")[-1]: value for path, value in other[key].items()} for key in other]


def test_a_cache_of_texts_verifies_and_a_second_build_has_nothing_to_do(tmp_path: Path) -> None:
    cache = text_cache(tmp_path)
    assert not verify(cache).bad
    report = build(tmp_path / "job.toml")
    assert (report.built, report.present) == (0, 8)


def test_a_changed_text_is_named(tmp_path: Path) -> None:
    text_cache(tmp_path)
    lines = (tmp_path / "texts.jsonl").read_text().splitlines()
    lines[17] = json.dumps({"label": "fish", "text": "another fish"})
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    with pytest.raises(StaleCache) as error:
        build(tmp_path / "job.toml")
    assert "texts.jsonl:17" in str(error.value.found)


def test_another_length_is_another_dataset(tmp_path: Path) -> None:
    text_cache(tmp_path)
    write_texts(tmp_path)
    with pytest.raises(StaleCache, match="input_shape"):
        build(write_job(tmp_path, write_texts(tmp_path, length=LENGTH + 1), looking_teacher()))


def test_a_text_that_cannot_be_read_has_no_items_and_no_targets_are_asked_of_it(tmp_path: Path) -> None:
    section = write_texts(tmp_path, extra="max_quarantined = 1.0")
    lines = (tmp_path / "texts.jsonl").read_text().splitlines()
    lines[3] = json.dumps({"label": "fowl", "text": "  "})
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    report = build(write_job(tmp_path, section, looking_teacher(extra=DENSE)))
    assert report.exit_code == 3
    assert report.quarantined["texts"]["error"].to_list() == ["texts.jsonl line 4: has no text"]
    cache = Cache.open(str(tmp_path / "cache"))
    assert cache.read_ragged("texts", 0).lengths[3] == 0
    logits = cache.read_targets("texts", "looking", 0)["logits"]
    kept = [i for i in range(16) if i != 3]
    assert np.allclose(logits[kept], expected_logits(texts(60))[kept], atol=1e-6)


def test_a_shard_without_a_readable_text_is_committed_too(tmp_path: Path) -> None:
    section = write_texts(tmp_path, 3, extra="max_quarantined = 1.0")
    lines = [json.dumps({"label": "fowl", "text": ""})] * 16 + (tmp_path / "texts.jsonl").read_text().splitlines()
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    assert build(write_job(tmp_path, section, looking_teacher())).exit_code == 3
    cache = Cache.open(str(tmp_path / "cache"))
    assert cache.committed("texts", "looking", "plain") == {0, 1}
    assert len(cache.samples().of("texts", ["looking"])) == 3


def test_an_answer_for_each_position_is_no_answer_for_a_text(tmp_path: Path) -> None:
    with pytest.raises(BadTeacher) as error:
        text_cache(tmp_path, looking_teacher(fault="per position"))
    assert error.value.expected == "a tensor (5, C)"


def test_a_feature_of_each_position_is_refused_by_name(tmp_path: Path) -> None:
    features = '[teacher.features]\nevery = { layer = "every", dtype = "fp32" }'
    with pytest.raises(BadTeacher, match="feature every of teacher looking is no vector of a row"):
        text_cache(tmp_path, looking_teacher(extra=features))


def test_a_teacher_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    teacher = looking_teacher().replace('tokenizer = "tokenizer.json"\n', "")
    with pytest.raises(BadRequest, match="does not say which tokenizer it has, and dataset texts was made by one"):
        text_cache(tmp_path, teacher)


def test_views_of_texts_are_refused_by_name(tmp_path: Path) -> None:
    views = '[views]\ndatasets = ["texts"]\ntransforms = [{ kind = "flip" }]\ncount = 2\n'
    with pytest.raises(BadRequest) as error:
        build(write_job(tmp_path, write_texts(tmp_path), looking_teacher(), views))
    assert "dataset texts cannot be augmented" in error.value.what


def test_what_a_worker_holds_is_projected_for_the_longest_rows(tmp_path: Path) -> None:
    job = read_job(write_job(tmp_path, write_texts(tmp_path), looking_teacher()), CacheJob)
    prepared = prepare_build(BuildRequest(job.cache, "job.toml", tuple(job.dataset), tuple(job.teacher)))
    (asked,) = (stage for stage in prepared.stages if stage.teacher is not None)
    assert _sizes(asked, prepared).activations >= 5 * LENGTH * 3 * 4
    assert project_worker(prepared, 7).total_bytes == 7 + max(
        sum(_sizes(stage, prepared).on_cpu(2)) for stage in prepared.stages
    )


def test_padding_is_no_id_and_rows_keep_their_order(tmp_path: Path) -> None:
    cache = text_cache(tmp_path)
    rows = cache.read_ragged("texts", 0)
    padded = pad(rows)
    assert padded.shape == (16, int(rows.lengths.max()))
    assert [row[row >= 0].tolist() for row in padded] == [row.tolist() for row in rows]


def test_the_targets_lie_beside_the_inputs_that_they_are_of(tmp_path: Path) -> None:
    cache = text_cache(tmp_path)
    ingest, targets = (cache.commit(ShardKey("texts", teacher, "plain", 1)) for teacher in (None, "looking"))
    cache.check_view(ingest, targets, cache.read_ragged("texts", 1))
    with pytest.raises(StaleCache):
        cache.check_view(ingest, targets, cache.read_ragged("texts", 2))


def test_a_layer_at_each_position_is_refused_even_where_all_texts_are_as_long(tmp_path: Path) -> None:
    features = '[teacher.features]\nevery = { layer = "every", dtype = "fp32" }'
    with pytest.raises(BadTeacher, match="is no vector of a row, whose length is its own"):
        text_cache(tmp_path, looking_teacher(extra=features), length=1)
