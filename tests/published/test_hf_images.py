"""Folders of `datasets` with images: read as `datasets` reads them, and the whole way to a student in use."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pytest

from storage.datasets import RawSample, Unreadable, arrow
from storage.errors import LabelOutOfRange, MissingSource
from tests.conftest import Program
from tests.published.toys import picture, pictures, read_all, save_splits, save_to_disk, source
from tests.student_train.using.toys import train_small
from tests.teacher_cache.toys import build, write_job

CLASSES = ("red", "green", "blue")
OTHERS = ("green", "blue", "red")  # the same, in another order
SECTION = '[[dataset]]\nname = "pictures"\nkind = "hf_folder"\npath = "pictures"\nsplit = "train"\nvalidation = 0.4\n'


def rows_of(samples: list[RawSample], classes: list[str]) -> list[list[str | None]]:
    """Return samples as `rows.json` has them."""
    return [
        [hashlib.sha256(s.payload_bytes).hexdigest()[:16], None if s.label is None else classes[s.label]]
        for s in samples
    ]


def test_rows_are_those_that_datasets_reads(published: Path) -> None:
    told = json.loads((published / "rows.json").read_text())
    splits = [source(published, kind="hf_folder", path="pictures", split=name) for name in ("train", "test")]
    assert [row for split in splits for row in rows_of(read_all(split), split.class_names())] == told["pictures"]
    filtered = source(published, kind="hf_folder", path="filtered")
    assert rows_of(read_all(filtered), filtered.class_names()) == told["filtered"]
    # the same data set as the Hub keeps it
    splits = [source(published, kind="hf_folder", path="repository", split=name) for name in ("train", "test")]
    assert [row for split in splits for row in rows_of(read_all(split), split.class_names())] == told["pictures"]
    assert splits[0].files()["file"].to_list() == [f"data/train-{n:05d}-of-00002.parquet" for n in range(2)]


def test_what_has_label_minus_one_has_none_and_is_told(published: Path) -> None:
    *_, last = read_all(source(published, kind="hf_folder", path="pictures", split="train"))
    assert (last.label, last.remarks) == (
        None,
        ("samples with label -1, which is no class to `datasets`, and so have none",),
    )


def test_any_part_of_a_file_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "MOST_AT_ONCE", 2)
    names = [CLASSES[i % 3] for i in range(11)]
    save_to_disk(tmp_path / "p", pictures(names, CLASSES), {"label": CLASSES}, batch=3)
    given = source(tmp_path, kind="hf_folder", path="p")
    (file,) = given.files()["file"]
    for position in range(11):
        for rows in range(12 - position):
            samples = list(given.read(file, position, rows))
            assert [s.sample_id for s in samples] == [f"{file}:{i}" for i in range(position, position + rows)]
            assert [s.payload for s in samples] == [picture(names[i], i) for i in range(position, position + rows)]
    assert given.runs(file, 2, 8) == [1, 3, 3, 1]


def test_classes_are_matched_by_name_whatever_their_order(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "p", pictures(["red", "blue"], CLASSES), {"label": CLASSES})
    given = source(tmp_path, kind="hf_folder", path="p", classes=[*OTHERS, "white"])
    given.files()
    assert [s.label for s in read_all(given)] == [OTHERS.index("red"), OTHERS.index("blue")]
    with pytest.raises(MissingSource, match="other classes than the job"):
        source(tmp_path, kind="hf_folder", path="p", classes=["red", "blue"]).files()


def test_a_batch_that_is_compressed_is_read_too(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "p", table := pictures(["red", "blue"], CLASSES), {"label": CLASSES})
    file = folder / "data-00000-of-00001.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    assert [s.payload for s in read_all(source(tmp_path, kind="hf_folder", path="p"))] == [
        picture("red", 0),
        picture("blue", 1),
    ]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])  # the mark of its end: all rows of whole batches are there


def cut_within(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def lose(file: Path) -> None:
    file.unlink()


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


def as_file(file: Path) -> None:
    """Write the other of Arrow's two formats."""
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def wrong_offsets(file: Path) -> None:
    """Let the offsets of the images lead out of their data."""
    data = bytearray(file.read_bytes())
    offsets = np.cumsum([0, *(len(picture(name, i)) for i, name in enumerate(("red", "blue")))], dtype=np.int32)
    at = data.index(offsets.tobytes())
    data[at + 4 : at + 8] = (2**30).to_bytes(4, "little")
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, cut_within, empty, lose, append, as_file, wrong_offsets])
def test_a_damaged_file_is_named(tmp_path: Path, damage: object) -> None:
    folder = save_to_disk(tmp_path / "p", pictures(["red", "blue"], CLASSES), {"label": CLASSES})
    damage(folder / "data-00000-of-00001.arrow")  # type: ignore[operator]
    with pytest.raises(MissingSource) as refused:
        read_all(source(tmp_path, kind="hf_folder", path="p"))
    assert "data-00000-of-00001.arrow" in str(refused.value)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"path": "pictures"}, "has several splits"),
        ({"path": "pictures", "split": "dev"}, "has no split dev"),
        ({"path": "pictures/test", "split": "dev"}, "is one split, not several"),
        ({"path": "news"}, "has no column image"),
        ({"path": "pictures/train", "image": "label"}, "holds no images"),
        ({"path": "pictures/train", "label": "image"}, "holds no labels"),
        ({"path": "pictures/train/state.json"}, "is not a folder"),
        ({"path": "pictures/trian"}, "there is no"),
        ({"path": "tars"}, "is no folder of `datasets`"),
        ({"path": "repository"}, "has several splits"),
    ],
)
def test_what_is_no_such_folder_or_column_is_told(published: Path, options: dict[str, str], what: str) -> None:
    with pytest.raises(MissingSource, match=what) as refused:
        source(published, kind="hf_folder", **options).files()
    assert refused.value.do or refused.value.expected


def test_all_splits_are_named(published: Path) -> None:
    with pytest.raises(MissingSource) as refused:
        source(published, kind="hf_folder", path="pictures", split="validation").files()
    assert (refused.value.found, refused.value.do) == (
        "train, test",
        'split = "train" in [[dataset]]; or name its own folder, pictures/train',
    )


def test_columns_that_are_others_are_told_with_what_to_write(published: Path) -> None:
    with pytest.raises(MissingSource) as refused:
        source(published, kind="hf_folder", path="news").files()
    assert str(refused.value.do).startswith('of text with a class: column = "text", label = "label"')


def test_a_repository_of_several_configurations_is_told(tmp_path: Path, published: Path) -> None:
    for name in ("en", "fr"):
        (tmp_path / "repo" / name).mkdir(parents=True)
        (tmp_path / "repo" / name / "train-00000-of-00001.parquet").write_bytes(
            (published / "repository/data/test-00000-of-00001.parquet").read_bytes()
        )
    with pytest.raises(MissingSource, match="in several folders") as refused:
        source(tmp_path, kind="hf_folder", path="repo", split="train").files()
    assert (refused.value.found, refused.value.do) == ("en, fr", 'path = "repo/en"')
    assert len(read_all(source(tmp_path, kind="hf_folder", path="repo/fr", split="train"))) == 4


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("train-00001-of-00002",), "1 of 2 gone: train-00000-of-00002.parquet"),
        (("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"), "of 1, of 2"),
        (("train-00000-of-00001-0a1b2c", "train-00000-of-00001-77aa88"), "two files of number 0"),
        (("train/0000", "train/0002"), "1 of 3 gone: 0001.parquet"),
    ],
)
def test_a_repository_that_lacks_files_or_has_them_twice_is_refused(
    tmp_path: Path, published: Path, names: tuple[str, ...], what: str
) -> None:
    for name in names:
        file = tmp_path / f"data/{name}.parquet"
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes((published / "repository/data/test-00000-of-00001.parquet").read_bytes())
    with pytest.raises(MissingSource) as refused:
        source(tmp_path, kind="hf_folder", path="data", split="train").files()
    assert what in str(refused.value)


def test_what_lies_beside_the_files_is_told(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "p", pictures(["red"], CLASSES), {"label": CLASSES})
    (folder / "cache-1234.arrow").write_bytes(b"")  # what `datasets` leaves behind
    assert source(tmp_path, kind="hf_folder", path="p").notes() == ["passed over: 1 × *.arrow"]


def test_a_label_that_is_no_class_and_a_row_without_image_are_told(tmp_path: Path) -> None:
    table = pictures(["red", "green"], CLASSES).set_column(1, "label", pa.array([0, 7]))
    table = table.set_column(0, "image", pa.array([{"bytes": None, "path": "x.png"}, table["image"][1].as_py()]))
    save_to_disk(tmp_path / "p", table, {"label": CLASSES})
    first, _ = read_all(source(tmp_path, kind="hf_folder", path="p"))
    assert isinstance(first.payload, Unreadable)
    with pytest.raises(LabelOutOfRange):
        build(write_job(tmp_path, '[[dataset]]\nname = "p"\nkind = "hf_folder"\npath = "p"\nmax_quarantined = 0.9\n'))


def test_from_a_saved_folder_to_a_student_that_is_measured_and_used(tmp_path: Path, program: Program) -> None:
    names = [CLASSES[i % 3] for i in range(60)]
    save_splits(
        tmp_path / "pictures",
        {
            "train": lambda f: save_to_disk(f, pictures(names, CLASSES), {"label": CLASSES}, files=3, batch=4),
            # its numbers mean other classes than those of `train`
            "test": lambda f: save_to_disk(f, pictures(names[:12], OTHERS, seed=100), {"label": OTHERS}),
        },
    )
    assert build(write_job(tmp_path, SECTION)).exit_code == 0
    assert build(write_job(tmp_path, SECTION)).built == 0
    run = train_small(tmp_path)
    measured = json.loads(program("student", "eval", run, tmp_path / "pictures/test", "--json").out)
    assert (measured["rows"], measured["figures"]["accuracy"]) == (12, 1.0)
    ended = program("student", "predict", run, tmp_path / "pictures/test", "-o", tmp_path / "out.csv")
    assert ended.code == 0, ended.err
    answers = pl.read_csv(tmp_path / "out.csv")
    assert answers["class"].to_list() == names[:12]
    assert answers["sample_id"][3] == "data-00000-of-00001.arrow:3"
    refused = program("student", "eval", run, tmp_path / "pictures")
    assert (refused.code, "train, test" in refused.err) == (2, True)
