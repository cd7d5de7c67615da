"""Whoever takes the wrong kind for what lies there is told of the right one, and what is taken together is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.errors import BadJob, MissingSource
from tests.published.test_hf_texts import table
from tests.published.toys import save_to_disk, source

WORDS: dict[str, Any] = {"column": "text", "train_tokenizer": {"vocabulary": 300}}
LABELLED = WORDS | {"label": "label", "length": 8}


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "parquet_images", "path": "pictures/train"},
        {"kind": "parquet_images", "path": "repository"},
        {"kind": "image_folder", "path": "pictures"},
        {"kind": "text", "path": "news", **LABELLED},
        {"kind": "text", "path": "news", "block": 8, **WORDS},
    ],
)
def test_a_folder_of_datasets_taken_for_another_kind_is_told(published: Path, options: dict[str, Any]) -> None:
    with pytest.raises(MissingSource) as refused:
        source(published, **options).files()
    assert str(refused.value.do).startswith('kind = "hf_folder"')


def test_files_of_several_splits_that_are_taken_together_are_told(published: Path) -> None:
    images = source(published, kind="parquet_images", path="repository/data")
    assert images.notes() == ['files of 2 splits are taken together: test, train; kind = "hf_folder" takes one by name']


def test_classes_of_text_called_by_numbers_that_have_names_are_told(tmp_path: Path) -> None:
    names = ["fish", "fowl", "plant"]
    save_to_disk(tmp_path / "saved", table(3, names), {"label": names})
    about = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})}
    pq.write_table(table(3, names).replace_schema_metadata(about), tmp_path / "a.parquet")
    (note,) = source(tmp_path, kind="text", path="a.parquet", **LABELLED).notes()
    assert note.startswith("classes are called by their numbers, which a.parquet names: fish, fowl, plant")
    assert source(tmp_path, kind="text", path="a.parquet", classes={"0": "x"}, **LABELLED).notes() == []
    assert source(tmp_path, kind="hf_folder", path="saved", **LABELLED).notes() == []


@pytest.mark.parametrize(("name", "do"), [("x.csv", "polars.read_csv"), ("x.json", "jq -c")])
def test_blocks_of_a_table_that_cannot_be_cut_are_refused(tmp_path: Path, name: str, do: str) -> None:
    (tmp_path / name).write_text("text\nhello\n")
    with pytest.raises(MissingSource) as refused:
        source(tmp_path, kind="text", path=name, block=8, **WORDS).files()
    assert str(refused.value.do).startswith(do)


@pytest.mark.parametrize(
    ("lines", "mistake"),
    [
        ('splti = "train"', "dataset[0].splti: unknown key; did you mean `split`?"),
        ('column = "text"\nlabel = "label"\ntrain_tokenizer = { vocabulary = 300 }', "dataset[0].length: missing"),
    ],
)
def test_a_mistake_in_a_section_is_told_at_its_place(tmp_path: Path, lines: str, mistake: str) -> None:
    text = f'cache = "c"\n[[dataset]]\nname = "d"\nkind = "hf_folder"\npath = "p"\n{lines}\n'
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(BadJob) as refused:
        read_job(tmp_path / "job.toml", CacheJob)
    assert refused.value.found == mistake
