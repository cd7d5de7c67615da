"""Tars of WebDataset: read as it reads them, anything odd told, and the way to a student in use."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from storage.cache import Cache
from storage.datasets import Unreadable
from storage.datasets.published import tars
from storage.errors import BadRequest, LabelOutOfRange, MissingSource
from tests.conftest import Program
from tests.published.toys import picture, read_all, source
from tests.student_train.using.toys import train_small
from tests.teacher_cache.toys import build, write_job

CLASSES = ["red", "green", "blue"]
Members = Sequence[tuple[str, bytes]]


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pairs(names: Sequence[str], *, first: int = 0) -> list[tuple[str, bytes]]:
    """Return a picture and its class for each name."""
    return [
        member
        for i, name in enumerate(names, start=first)
        for member in ((f"{i:04d}.png", picture(name, i)), (f"{i:04d}.cls", str(CLASSES.index(name)).encode()))
    ]


def given(folder: Path, **options: object) -> object:
    return source(folder, **{"kind": "webdataset", "path": "t", "classes": CLASSES} | options)


def reasons(samples: list) -> list[str | None]:
    return [str(s.payload) if isinstance(s.payload, Unreadable) else None for s in samples]


def test_rows_are_those_that_webdataset_reads(published: Path) -> None:
    told = json.loads((published / "rows.json").read_text())["tars"]
    for path in ("tars", "tars/shard-{000000..000002}.tar", "{tars,tars}/shard-00000{0,1,2}.tar"):
        samples = read_all(given(published, path=path))[: len(told)]
        found = [[s.sample_id.rpartition("/")[2], hashlib.sha256(s.payload_bytes).hexdigest()[:16]] for s in samples]
        assert found == [row[:2] for row in told]
        assert [s.label for s in samples] == [row[2] for row in told]
    assert samples[4].sample_id == "tars/shard-000001.tar/0004"


def test_any_part_of_a_tar_is_read_from_a_place_near_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "EVERY", 4)
    names = [CLASSES[i % 3] for i in range(14)]
    long = "a-folder-of-a-long-name/" * 8  # so that names need headers of their own
    write_tar(tmp_path / "t/a.tar", [(long + name, data) for name, data in pairs(names)])
    tars._places.cache_clear()
    (file,) = given(tmp_path).files()["file"]
    for position in (13, 0, 5, 8, 11, 4):
        for rows in (0, 1, 3, 14 - position):
            samples = list(given(tmp_path).read(file, position, rows))
            wanted = list(range(position, min(position + rows, 14)))
            assert [s.sample_id for s in samples] == [f"a.tar/{long}{i:04d}" for i in wanted]
            assert [s.payload for s in samples] == [picture(names[i], i) for i in wanted]
    assert sorted(tars.places_of(tmp_path / "t/a.tar")._begins) == [0, 4, 8, 12]
    begins = tars.places_of(tmp_path / "t/a.tar")._begins
    assert begins[12] > begins[8] > begins[4] > 0


@pytest.mark.parametrize(
    ("label", "data", "options", "number"),
    [
        ("cls", b"1\n", {}, 1),
        ("txt", b" green ", {"label": "txt"}, 1),
        ("json", b'{"label": 2, "more": []}', {"label": "json", "label_key": "label"}, 2),
        ("json", b'{"name": "red"}', {"label": "json", "label_key": "name"}, 0),
        ("cls", b"1", {"label": ""}, None),
        ("meta.json", b'{"y": "blue"}', {"label": "meta.json", "label_key": "y"}, 2),
    ],
)
def test_a_class_is_a_number_or_a_name(
    tmp_path: Path, label: str, data: bytes, options: dict[str, str], number: int | None
) -> None:
    write_tar(tmp_path / "t/a.tar", [("x.png", picture("red", 0)), (f"x.{label}", data)])
    (sample,) = read_all(given(tmp_path, **options))
    assert (sample.label, reasons([sample])) == (number, [None])


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.png", b"p")], "has no *.cls; it has *.png"),
        ([("x.cls", b"1")], "has no picture: *.cls"),
        ([("x.cls", b"1"), ("x.png", b"p"), ("x.jpg", b"p")], "has several pictures: *.jpg, *.png"),
        ([("x.cls", b""), ("x.png", b"p")], "has a *.cls of nothing"),
        ([("x.cls", b"\xff"), ("x.png", b"p")], "has a *.cls that cannot be read"),
        ([("x.cls", b"1"), ("x.png", b"")], "has a picture of 0 bytes"),
    ],
)
def test_a_sample_that_lacks_something_is_set_aside_with_the_reason(
    tmp_path: Path, members: Members, reason: str
) -> None:
    write_tar(tmp_path / "t/a.tar", [*members, *pairs(["red"])])
    first, second = read_all(given(tmp_path))
    assert str(first.payload).startswith(reason)
    assert second.label == 0


@pytest.mark.parametrize("data", [b"{}", b'{"y": null}', b'{"y": 1.5}', b'{"y": true}', b"[1]", b"{", b"[" * 100_000])
def test_json_without_a_class_is_set_aside(tmp_path: Path, data: bytes) -> None:
    write_tar(tmp_path / "t/a.tar", [("x.png", b"p"), ("x.json", data)])
    (sample,) = read_all(given(tmp_path, label="json", label_key="y"))
    assert isinstance(sample.payload, Unreadable)


@pytest.mark.parametrize("label", [b"white", b"3", b"-1"])
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, label: bytes) -> None:
    write_tar(tmp_path / "t/a.tar", [*pairs(["red"]), ("x.png", picture("red", 1)), ("x.cls", label)])
    section = f'[[dataset]]\nname = "t"\nkind = "webdataset"\npath = "t"\nclasses = {json.dumps(CLASSES)}\n'
    with pytest.raises(LabelOutOfRange):
        build(write_job(tmp_path, section))


def test_a_number_that_is_the_name_of_another_class_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "t/a.tar", [("x.png", b"p"), ("x.cls", b"1")])
    with pytest.raises(LabelOutOfRange, match="the number of one class and the name of another"):
        read_all(given(tmp_path, classes=["1", "0"]))


def cut_behind_a_member(data: bytes) -> bytes:
    return data[: data.index(b"0001.cls")]  # all that is there is whole: to the library this is the end


def cut_within_a_member(data: bytes) -> bytes:
    return data[: data.index(b"0001.cls") - 600]


def damage_a_header(data: bytes) -> bytes:
    return data.replace(b"0001.cls", b"0001.clt")  # its sum is another now


def append_another(data: bytes) -> bytes:
    return data + data  # cat a.tar b.tar


def compress(data: bytes) -> bytes:
    return gzip.compress(data)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (cut_behind_a_member, "is no whole tar"),
        (cut_within_a_member, "is no whole tar"),
        (damage_a_header, "is no whole tar"),
        (append_another, "is no whole tar"),
        (lambda data: b"", "is no whole tar"),
        (lambda data: b"no tar at all" * 100, "is no whole tar"),
        (lambda data: b"PK\x03\x04" + data, "is a zip"),
        (compress, "is compressed"),
    ],
)
def test_a_damaged_tar_is_refused_before_anything_is_built(tmp_path: Path, damage: object, what: str) -> None:
    path = write_tar(tmp_path / "t/a.tar", pairs(CLASSES))
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(MissingSource, match=what) as refused:
        given(tmp_path).files()
    assert "a.tar" in refused.value.what


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([*pairs(["red", "green"]), ("0000.json", b"{}")], "sample 0000 do not lie together"),
        ([*pairs(["red", "green"]), *pairs(["blue"])], "sample 0000 do not lie together"),
        ([*pairs(["red"]), ("0000.png", b"p")], "two members 0000.png"),
        ([*pairs(["red"]), ("0000.PNG", b"p")], "two members 0000.png"),
    ],
)
def test_members_apart_and_twice_are_refused(tmp_path: Path, members: Members, what: str) -> None:
    write_tar(tmp_path / "t/a.tar", members)
    with pytest.raises(MissingSource, match=what):
        given(tmp_path).files()


def test_what_is_no_member_of_a_sample_is_told(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t/a.tar", [("./._0000.png", b"mac"), ("README", b"read"), *pairs(["red"])])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("0009.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "t/notes.md").write_text("")
    tar_files = given(tmp_path)
    assert [s.sample_id for s in read_all(tar_files)] == ["a.tar/0000"]
    assert tar_files.notes() == [
        "passed over: 1 × *.md",
        "passed over in tars: 1 × ._*, 1 × files without a suffix, 1 × what is no regular file",
    ]


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"path": "t/{0..2}.tar"}, MissingSource, "2 of 3 of {0..2}.tar are not there"),
        ({"path": "t/{2..0}.tar"}, BadRequest, "no range of tars"),
        ({"path": "nowhere"}, MissingSource, "there is no"),
        ({"path": "e"}, MissingSource, "1 × *.gz"),
        ({"classes": None}, BadRequest, "*.cls with numbers up to 2"),
    ],
)
def test_what_is_not_there_is_told(tmp_path: Path, options: dict[str, object], error: type, what: str) -> None:
    write_tar(tmp_path / "t/0.tar", pairs(CLASSES))
    (tmp_path / "e").mkdir()
    (tmp_path / "e/a.tar.gz").write_bytes(b"")
    named = given(tmp_path, **options)
    with pytest.raises(error) as refused:
        (named.files(), named.class_names())
    assert what in str(refused.value)


@pytest.mark.parametrize(
    "options", [{"label": "json"}, {"label_key": "y"}, {"label": "png"}, {"images": []}, {"images": [".png"]}]
)
def test_options_that_do_not_agree_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        given(tmp_path, **options)


def test_tars_that_have_not_changed_are_not_gone_through_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "t/a.tar", pairs(CLASSES))
    section = f'[[dataset]]\nname = "t"\nkind = "webdataset"\npath = "t"\nclasses = {json.dumps(CLASSES)}\n'
    section += 'size = 8\ninputs = "encoded"\n'
    assert build(write_job(tmp_path, section)).exit_code == 0
    counted = []
    count = tars.Places.count
    monkeypatch.setattr(tars.Places, "count", lambda self: counted.append(self.path.name) or count(self))
    write_tar(tmp_path / "t/b.tar", pairs(["blue"], first=3))
    assert build(write_job(tmp_path, section)).built == 1
    assert counted == ["b.tar"]
    assert Cache.open(str(tmp_path / "cache")).samples().of("t")["sample_id"].to_list()[-1] == "b.tar/0003"


def test_from_tars_to_a_student_that_is_measured_and_used(tmp_path: Path, program: Program) -> None:
    names = [CLASSES[i % 3] for i in range(60)]
    for number in range(3):
        of_tar = names[20 * number : 20 * (number + 1)]
        write_tar(tmp_path / f"t/shard-{number:06d}.tar", pairs(of_tar, first=20 * number))
    write_tar(tmp_path / "new/shard-000000.tar", pairs(names[:12], first=100))
    section = (
        '[[dataset]]\nname = "pictures"\nkind = "webdataset"\npath = "t/shard-{000000..000002}.tar"\n'
        f"classes = {json.dumps(CLASSES)}\nvalidation = 0.4\nrows_per_shard = 16\n"
    )
    assert build(write_job(tmp_path, section)).exit_code == 0
    run = train_small(tmp_path)
    measured = json.loads(program("student", "eval", run, tmp_path / "new", "--json").out)
    assert (measured["rows"], measured["figures"]["accuracy"]) == (12, 1.0)
    assert measured["notes"] == ["labels of new that are numbers are taken as the student's own: 0 is red, …"]
    tar = tmp_path / "new/shard-000000.tar"
    assert program("student", "predict", run, tar, "-o", tmp_path / "out.csv").code == 0
    answers = pl.read_csv(tmp_path / "out.csv")
    assert answers["class"].to_list() == names[:12]
    assert answers["sample_id"][0] == "shard-000000.tar/0100"
