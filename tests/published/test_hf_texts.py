"""Folders of `datasets` with texts and chats: as `datasets` reads them, and the way to students in use."""

from __future__ import annotations

import json
from itertools import chain, pairwise
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from storage.cache import Cache
from storage.datasets import RawSample
from storage.errors import BadRequest, LabelOutOfRange, MissingSource
from student_train.running.train import train_students
from tests.chats.toys import CHATML, write_model
from tests.conftest import Program
from tests.published.toys import read_all, save_splits, save_to_disk, source
from tests.teacher_cache.toys import build, write_job
from tests.texts.toys import CLASSES, looking_teacher, request, small_encoder, texts, word_tokenizer, write_texts

OTHERS = ["plant", "fish", "fowl"]
SECTION = (
    '[[dataset]]\nname = "texts"\nkind = "hf_folder"\npath = "saved"\nsplit = "train"\ncolumn = "text"\n'
    'label = "label"\nlength = 12\ntokenizer = "tokenizer.json"\nvalidation = 0.25\nrows_per_shard = 16\n'
)


def prepared(folder: Path, **options: object) -> object:
    """Return a source with the tokenizer of whole words."""
    (folder / "tokenizer.json").write_bytes(word_tokenizer())
    given = source(folder, **{"kind": "hf_folder", "tokenizer": "tokenizer.json"} | options)
    return given.prepared(given.find_tokenizer(lambda name: None), {})


def table(count: int, names: list[str], seed: int = 0) -> pa.Table:
    rows = texts(count, seed)
    return pa.table({"text": [text for _, text in rows], "label": [names.index(label) for label, _ in rows]})


def spelled(samples: list[RawSample]) -> list[list[int]]:
    return [sample.payload.tolist() for sample in samples]  # type: ignore[union-attr]


def test_classes_are_those_that_datasets_reads(published: Path, tmp_path: Path) -> None:
    told = json.loads((published / "rows.json").read_text())["news"]
    (tmp_path / "news").symlink_to(published / "news")
    given = prepared(tmp_path, path="news", column="text", label="label", length=20)
    assert given.class_names() == ["World", "Sports", "Business"]  # in the order of their numbers, not sorted
    names = [None if sample.label is None else given.class_names()[sample.label] for sample in read_all(given)]
    assert names == [name for _, name in told]
    assert names[3] is None  # -1


def test_a_class_of_another_number_is_the_same_by_its_name(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "a", table(9, CLASSES), {"label": CLASSES}, files=2, batch=2)
    save_to_disk(tmp_path / "b", table(9, OTHERS), {"label": OTHERS})
    options = {"column": "text", "label": "label", "length": 12, "classes": CLASSES}
    one, other = (prepared(tmp_path, path=name, **options) for name in ("a", "b"))
    assert [sample.label for sample in read_all(one)] == [sample.label for sample in read_all(other)] == [0, 1, 2] * 3
    assert spelled(read_all(one)) == spelled(read_all(other))
    fewer = prepared(tmp_path, path="a", **options | {"classes": CLASSES[:2]})
    with pytest.raises(LabelOutOfRange, match="a label that is no class"):
        read_all(fewer)


def test_rows_of_the_hub_have_the_classes_of_their_schema(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": CLASSES}}
    rows = table(9, CLASSES).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "repo/data").mkdir(parents=True)
    pa.parquet.write_table(rows, tmp_path / "repo/data/train-00000-of-00001.parquet")
    given = prepared(tmp_path, path="repo", split="train", column="text", label="label", length=12)
    assert (given.class_names(), [s.label for s in read_all(given)]) == (CLASSES, [0, 1, 2] * 3)


def test_blocks_of_a_folder_are_those_of_the_same_rows_in_json(tmp_path: Path) -> None:
    rows = table(40, CLASSES)
    save_to_disk(tmp_path / "saved", rows, {"label": CLASSES}, files=1, batch=7)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows.to_pylist()))
    saved = prepared(tmp_path, path="saved", block=16)
    plain = prepared(tmp_path, kind="text", path="rows.jsonl", column="text", block=16)
    assert spelled(read_all(saved)) == spelled(read_all(plain))
    # a row a document: wherever ranges meet, each is in one of them
    each = prepared(tmp_path, path="saved", block=16, pack=False)
    ((file, size),) = each.files().select("file", "rows").iter_rows()
    ranges = pairwise([0, size // 3, size // 2, size])
    parts = [spelled(list(each.read_range(file, a, b, last=b == size))) for a, b in ranges]
    assert all(parts)
    assert list(chain.from_iterable(parts)) == spelled(read_all(each))


def test_chats_of_a_folder_are_those_of_the_same_rows_in_json(published: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "model", CHATML)
    said = [("What is love?", "'Tis not hereafter."), ("What is to come?", "Is still unsure.")]
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in said]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in chats))
    (tmp_path / "saved").symlink_to(published / "chats")
    options = {"tokenizer": "model", "length": 64}
    of = [{"kind": "hf_folder", "path": "saved"}, {"kind": "chat", "path": "chats.jsonl"}]
    given = [source(tmp_path, **options, **each) for each in of]
    one, other = (spelled(read_all(each.prepared(each.find_tokenizer(lambda name: None), {}))) for each in given)
    assert one == other
    assert len(one) == 2


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"column": "body", "label": "label", "length": 12}, "has no column body"),
        ({"column": "text", "label": "topic", "length": 12}, "has no column topic"),
        ({"column": "label", "label": "text", "length": 12}, "holds no text"),
        ({"column": "body", "block": 8}, "has no column body"),
    ],
)
def test_columns_that_are_not_there_are_told(
    published: Path, tmp_path: Path, options: dict[str, object], what: str
) -> None:
    (tmp_path / "news").symlink_to(published / "news")
    with pytest.raises(MissingSource, match=what):
        read_all(prepared(tmp_path, path="news", **options))


def test_from_a_saved_folder_to_a_student_of_texts_in_use(tmp_path: Path, program: Program) -> None:
    write_texts(tmp_path)  # the teacher's code and the tokenizer
    save_splits(
        tmp_path / "saved",
        {
            "train": lambda f: save_to_disk(f, table(60, CLASSES), {"label": CLASSES}, files=2),
            "test": lambda f: save_to_disk(f, table(12, OTHERS, seed=4), {"label": OTHERS}),
        },
    )
    report = build(write_job(tmp_path, SECTION, looking_teacher()))
    assert report.exit_code == 0, report
    cache = Cache.open(str(tmp_path / "cache"))
    assert not train_students(request(cache, tmp_path / "runs", small_encoder(epochs=30, learning_rate=0.02))).errors
    run = tmp_path / "runs/encoder"
    measured = json.loads(program("student", "eval", run, tmp_path / "saved/test", "--json").out)
    assert measured["rows"] == 12
    assert measured["figures"]["accuracy"] > 0.7
    ended = program("student", "predict", run, tmp_path / "saved/test", "-o", tmp_path / "out.csv")
    assert ended.code == 0, ended.err
    answers = pl.read_csv(tmp_path / "out.csv")
    wanted = [label for label, _ in texts(12, 4)]
    right = sum(one == other for one, other in zip(answers["class"], wanted, strict=True))
    assert right / 12 == measured["figures"]["accuracy"]
    assert BadRequest.exit_code == program("student", "eval", run, tmp_path / "saved").code
