"""Texts in tars, beside pictures: read as they are written there, and the way to a student in use."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from storage.cache import Cache
from storage.datasets import Unreadable
from storage.datasets.published import TarTexts, tars
from storage.errors import LabelOutOfRange, MissingSource
from student_train.running.train import train_students
from tests.conftest import Program
from tests.published.test_webdataset import write_tar
from tests.published.toys import picture, read_all, source
from tests.teacher_cache.toys import build, write_job
from tests.texts.toys import CLASSES, TEACHER, looking_teacher, request, small_encoder, texts, word_tokenizer

Members = list[tuple[str, bytes]]


def prepared(folder: Path, **options: object) -> TarTexts:
    """Return a source with the tokenizer of whole words."""
    (folder / "tokenizer.json").write_bytes(word_tokenizer())
    said = {"kind": "webdataset", "path": "t", "tokenizer": "tokenizer.json", "column": "txt", "length": 12}
    given = source(folder, **said | options)
    found: TarTexts = given.prepared(given.find_tokenizer(lambda name: None), {})
    return found


def captioned(count: int, seed: int = 0, first: int = 0) -> Members:
    """Return a picture, its text and its class for each of some texts, as three members."""
    members = []
    for i, (label, text) in enumerate(texts(count, seed), start=first):
        said = {"png": picture("red", 0), "txt": text.encode(), "cls": label.encode()}
        members += [(f"{i:04d}.{kind}", data) for kind, data in said.items()]
    return members


def in_json(count: int, seed: int = 0) -> Members:
    """Return the same texts as keys of JSON, their classes as numbers."""
    members = []
    for i, (label, text) in enumerate(texts(count, seed)):
        said = {"caption": text, "class": CLASSES.index(label), "lang": "de" if i % 3 else "en"}
        members.append((f"{i:04d}.json", json.dumps(said).encode()))
    return members


def test_a_text_is_a_member_or_a_key_of_one_in_json(tmp_path: Path) -> None:
    write_tar(tmp_path / "t/a.tar", captioned(9))
    write_tar(tmp_path / "j/a.tar", in_json(9))
    members = read_all(prepared(tmp_path, label="cls", classes=CLASSES))
    keys = read_all(prepared(tmp_path, path="j", column="json.caption", label="json.class", classes=CLASSES))
    assert [s.payload.tolist() for s in members] == [s.payload.tolist() for s in keys]
    assert [s.label for s in members] == [s.label for s in keys] == [CLASSES.index(label) for label, _ in texts(9, 0)]
    assert [s.sample_id for s in members] == [f"a.tar/{i:04d}" for i in range(9)]
    some = read_all(prepared(tmp_path, path="j", column="json.caption", where={"json.lang": "en"}))
    assert [s.sample_id for s in some] == ["a.tar/0000", "a.tar/0003", "a.tar/0006"]


def test_any_part_of_a_tar_is_read_from_a_place_near_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "EVERY", 4)
    write_tar(tmp_path / "t/a.tar", captioned(14))
    given = prepared(tmp_path, label="cls")
    whole = read_all(given)
    for position, rows in ((13, 1), (0, 14), (5, 3), (4, 0)):
        part = list(given.read("a.tar", position, rows))
        assert [s.sample_id for s in part] == [s.sample_id for s in whole[position : position + rows]]
    halves = [read_all(prepared(tmp_path, part=part)) for part in ([0.0, 0.5], [0.5, 1.0])]
    assert [s.sample_id for half in halves for s in half] == [s.sample_id for s in whole]


@pytest.mark.parametrize(
    ("members", "options", "reason"),
    [
        ([("y.png", b"p"), ("x.txt", b"a")], {}, "has no text in txt: nothing"),
        ([("y.txt", b"\xff"), ("x.txt", b"a")], {}, "UTF-8"),
        ([("y.txt", b""), ("x.txt", b"a")], {}, "has no text"),
        ([("y.json", b"[1]"), ("x.json", b'{"a": "a"}')], {"column": "json.a"}, "is list, not an object"),
        ([("y.json", b"{"), ("x.json", b'{"a": "a"}')], {"column": "json.a"}, "is not JSON"),
        ([("y.json", b'{"a": 5}'), ("x.json", b'{"a": "a"}')], {"column": "json.a"}, "has no text in json.a: int"),
    ],
)
def test_what_cannot_be_read_is_told_of_its_sample(
    tmp_path: Path, members: Members, options: dict[str, object], reason: str
) -> None:
    write_tar(tmp_path / "t/a.tar", members)
    bad, good = read_all(prepared(tmp_path, **options))
    assert isinstance(bad.payload, Unreadable)
    assert reason in str(bad.payload)
    assert not isinstance(good.payload, Unreadable)


def test_what_a_job_has_wrong_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "t/a.tar", captioned(9))
    with pytest.raises(MissingSource, match=r"has a member caption") as refused:
        read_all(prepared(tmp_path, column="caption"))
    assert "*.cls, *.png, *.txt" in str(refused.value)
    with pytest.raises(LabelOutOfRange, match="a label that is no class"):
        read_all(prepared(tmp_path, label="cls", classes=CLASSES[:2]))
    for wrong in ({"column": 0}, {"header": True}, {"label": 1}):
        with pytest.raises(ValidationError):
            prepared(tmp_path, **wrong)


def test_tars_that_others_count_in_their_names_are_missed(tmp_path: Path) -> None:
    write_tar(tmp_path / "t/a-00000-of-00002.tar", captioned(3))
    (tmp_path / "t/readme.md").write_text("of both")
    passed, lacking = prepared(tmp_path).passed_over()
    assert passed.startswith("passed over: ")
    assert lacking.endswith("are not there: a-00001-of-00002.tar")


@pytest.mark.slow
def test_from_texts_in_tars_to_a_student_that_is_measured_and_used(tmp_path: Path, program: Program) -> None:
    for number in range(2):
        write_tar(tmp_path / f"t/{number}.tar", captioned(60, seed=number, first=60 * number))
    write_tar(tmp_path / "new/0.tar", captioned(12, seed=9))
    (tmp_path / "tokenizer.json").write_bytes(word_tokenizer())
    section = (
        '[[dataset]]\nname = "texts"\nkind = "webdataset"\npath = "t/{0..1}.tar"\ncolumn = "txt"\nlabel = "cls"\n'
        'length = 12\ntokenizer = "tokenizer.json"\nvalidation = 0.25\nrows_per_shard = 16\n'
    )
    (tmp_path / "looking.py").write_text(TEACHER)
    assert build(write_job(tmp_path, section, looking_teacher())).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    assert cache.dataset("texts").classes == sorted(CLASSES)
    results = train_students(request(cache, tmp_path / "runs", small_encoder()))
    assert not results.errors
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/run.json")]
    ended = program("student", "eval", run, tmp_path / "new", "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    assert said["rows"] == 12
    ended = program("student", "predict", run, tmp_path / "new", "-o", tmp_path / "out.csv")
    assert ended.code == 0, ended.err
    answers = pl.read_csv(tmp_path / "out.csv")
    assert answers["sample_id"][0] == "0.tar/0000"
    right = [a == label for a, (label, _) in zip(answers["class"], texts(12, 9), strict=True)]
    assert sum(right) / 12 == pytest.approx(said["figures"]["accuracy"])
