"""The page of data: its jobs are valid, its files and commands run as they stand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from tests.chats.toys import CHATML, write_model
from tests.conftest import Program
from tests.pages.reading import blocks, run
from tests.published.test_webdataset import pairs, write_tar
from tests.published.toys import pictures, save_splits, save_to_disk
from tests.teacher_cache.toys import build


def test_every_job_of_the_page_of_data_is_valid(tmp_path: Path) -> None:
    jobs = [text for language, text in blocks("data.md") if language == "toml"]
    assert len(jobs) >= 7
    for text in jobs:
        (tmp_path / "job.toml").write_text(text)
        read_job(tmp_path / "job.toml", CacheJob)


def test_a_dataset_of_ones_own_is_built_as_the_page_of_data_has_it(tmp_path: Path) -> None:
    (code,) = (text for language, text in blocks("data.md") if text.startswith("# data.py"))
    (tmp_path / "data.py").write_text(code)
    (job,) = (text for language, text in blocks("data.md") if "data.py:build" in text and language == "toml")
    (tmp_path / "job.toml").write_text(job)
    run([str(Path(sys.executable).parent / "cache"), "build", "job.toml"], tmp_path)
    assert len(Cache.open(str(tmp_path / "caches/waves")).samples().of("waves")) == 200


def test_a_table_and_its_pipeline_are_as_the_page_of_data_has_them(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lines,) = (text for language, text in blocks("data.md") if language == "csv")
    (code,) = (text for language, text in blocks("data.md") if text.startswith("# churn.py"))
    (job,) = (text for language, text in blocks("data.md") if text.startswith("# churn.toml"))
    (tmp_path / "customers.csv").write_text(lines)
    (tmp_path / "churn.toml").write_text(job)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    ended = program("cache", "build", "churn.toml")
    assert ended.code == 0, ended.err
    said = Cache.open("caches/customers").read_targets("customers", "logistic", 0)["logits"]
    expected = names["model"].predict_log_proba(names["table"].drop("churn"))
    assert np.allclose(said, expected, atol=1e-5)


def test_chats_are_read_as_the_page_of_data_has_them(tmp_path: Path) -> None:
    (lines,) = (text for language, text in blocks("data.md") if language == "json")
    (job,) = (text for language, text in blocks("data.md") if 'kind = "chat"' in text and language == "toml")
    (tmp_path / "chats/more").mkdir(parents=True)
    (tmp_path / "chats/more/train.jsonl").write_text(lines)
    write_model(tmp_path / "models/teacher", CHATML)
    (tmp_path / "job.toml").write_text(job)
    run([str(Path(sys.executable).parent / "cache"), "build", "job.toml"], tmp_path)
    samples = Cache.open(str(tmp_path / "caches/chats")).samples().of("chats")
    assert samples["sample_id"].to_list() == [f"more/train.jsonl:{at}" for at in (0, 169, 283)]


def test_saved_folders_and_tars_are_read_as_the_page_of_data_has_them(tmp_path: Path) -> None:
    classes = ["cat", "ship"]
    rows = pictures(["red", "green"] * 6, ["red", "green"])
    splits = ("train", "test")
    save_splits(tmp_path / "saved", {name: lambda at: save_to_disk(at, rows, {"label": classes}) for name in splits})
    for number in range(2):
        texts = [(f"{i:04d}.txt", b"a picture of something") for i in range(6)]
        members = [*pairs(["red", "green"] * 3), *texts]
        write_tar(tmp_path / f"tars/shard-{number:06d}.tar", sorted(members))
    for what, counts in (('path = "saved"\n', (12, 12)), ('name = "train"\nkind = "webdataset"', (12,))):
        (job,) = (text for language, text in blocks("data.md") if what in text and language == "toml")
        (tmp_path / "job.toml").write_text(job)
        assert build(tmp_path / "job.toml").exit_code == 0
        samples = Cache.open(str(read_job(tmp_path / "job.toml", CacheJob).cache)).samples()
        assert tuple(len(samples.of(name)) for name in splits[: len(counts)]) == counts
    (job,) = (text for language, text in blocks("data.md") if 'name = "captions"' in text)
    (tmp_path / "job.toml").write_text(job)
    assert build(tmp_path / "job.toml").exit_code == 0
    captions = Cache.open(str(tmp_path / "caches/captions"))
    assert (len(captions.samples().of("captions")), captions.dataset("captions").classes) == (12, ["0", "1"])
