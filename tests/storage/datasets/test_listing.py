"""What counts as a sample, and what is told of the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.datasets import RawSample
from storage.datasets.base import RecordedFile
from storage.datasets.listing import list_files
from storage.errors import MissingSource

Make = Callable[..., Any]
ReadAll = Callable[..., list[RawSample]]
LABEL = {"label": "label"}
RED = [[[255, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 255, 0]]]


def touch(folder: Path, *names: str, data: bytes = b"") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def photos(tmp_path: Path, encoded: Callable[..., bytes]) -> Path:
    touch(tmp_path, "photos/cat/a.png", "photos/dog/b.png", data=encoded(RED))
    return tmp_path / "photos"


def names_of(source: Any) -> list[str]:
    return source.files()["file"].to_list()  # type: ignore[no-any-return]


def test_what_programs_leave_behind_is_no_sample(photos: Path, source: Make) -> None:
    left = ("cat/.ipynb_checkpoints/a-checkpoint.png", "cat/._a.png", "dog/@eaDir/b.png/SYNO.png", ".git/x.png")
    touch(photos, *left, "__MACOSX/cat/a.png")
    found = source(kind="image_folder", path="photos")
    assert names_of(found) == ["cat/a.png", "dog/b.png"]
    assert found.class_names() == ["cat", "dog"]
    beside = "1 × .git/ beside the classes, 1 × __MACOSX/ beside the classes"
    assert found.notes() == [f"passed over: {beside}, 1 × .ipynb_checkpoints/, 1 × ._*, 1 × @eaDir/"]


def test_linked_folders_are_looked_into_and_dangling_links_are_told(photos: Path, source: Make, tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/c.png")
    (photos / "dog/more").symlink_to(tmp_path / "elsewhere")
    (photos / "dog/more/up").symlink_to(photos / "dog")  # leads back
    (photos / "cat/gone.png").symlink_to(tmp_path / "nowhere.png")
    found = source(kind="image_folder", path="photos")
    assert names_of(found) == ["cat/a.png", "dog/b.png", "dog/more/c.png"]
    assert found.notes() == ["passed over: 1 × links that lead nowhere"]


def test_suffixes_that_are_none_and_classes_without_an_image_are_told(photos: Path, source: Make) -> None:
    touch(photos, "fox/1.heic", "fox/2.heic", "gnu/img1", "labels.csv")
    assert source(kind="image_folder", path="photos").notes() == [
        "passed over: 2 × *.heic, 1 × *.csv beside the classes, 1 × files without a suffix",
        "classes without an image: fox, gnu",
    ]


def test_splits_are_no_classes(tmp_path: Path, source: Make) -> None:
    touch(tmp_path, "p/train/cat/a.png", "p/val/cat/b.png")
    with pytest.raises(MissingSource) as caught:
        source(kind="image_folder", path="p").files()
    assert (caught.value.found, caught.value.do) == (
        "train, val",
        'path = "p/train"; or, if they are classes, name them: classes = ["train", "val"]',
    )
    named = source(kind="image_folder", path="p", classes=["train", "val"])
    assert names_of(named) == ["train/cat/a.png", "val/cat/b.png"]


def test_folders_that_count_sort_by_name_and_this_is_told(tmp_path: Path, source: Make) -> None:
    touch(tmp_path, *(f"p/{number}/x.png" for number in range(12)))
    (note,) = source(kind="image_folder", path="p").notes()
    assert note.startswith("classes sort by name: 0, 1, 10, 11, 2, 3")
    counted = [str(number) for number in range(12)]
    ordered = source(kind="image_folder", path="p", classes=counted)
    assert (ordered.class_names(), ordered.notes()) == (counted, [])


def test_names_in_a_schema_that_count_sort_by_name_and_this_is_told(tmp_path: Path, source: Make) -> None:
    names = sorted(str(number) for number in range(12))  # as `datasets` writes a folder of such folders
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"image": [b""], "label": [0]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        tmp_path / "x.parquet",
    )
    (note,) = source(kind="parquet_images", path="x.parquet").notes()
    assert note.startswith("classes sort by name: 0, 1, 10, 11, 2, 3")
    assert source(kind="parquet_images", path="x.parquet", classes=sorted(names, key=int)).notes() == []


def test_labels_follow_the_jobs_classes(photos: Path, source: Make, read_all: ReadAll) -> None:
    images = source(kind="image_folder", path="photos", classes=["dog", "eel", "cat"])
    assert [(sample.sample_id, sample.label) for sample in read_all(images)] == [("cat/a.png", 2), ("dog/b.png", 0)]
    assert images.notes() == ["classes without an image: eel"]


def test_a_folder_that_is_no_class_is_refused(photos: Path, source: Make) -> None:
    with pytest.raises(MissingSource) as caught:
        source(kind="image_folder", path="photos", classes=["cat", "eel"]).files()
    assert (caught.value.found, caught.value.expected) == ("dog", "cat, eel")


def test_images_without_labels_need_the_teachers_classes(photos: Path, source: Make, read_all: ReadAll) -> None:
    images = source(kind="image_folder", path="photos/cat", classes=["cat", "dog"])
    assert [(sample.sample_id, sample.label) for sample in read_all(images)] == [("a.png", None)]


def test_a_row_of_an_older_cache_stays_a_row(photos: Path, source: Make) -> None:
    touch(photos, "cat/.old/a.png")
    recorded = {"cat/.old/a.png": RecordedFile(0, "1", 1), "cat/deleted.png": RecordedFile(0, "1", 1)}
    found = source(kind="image_folder", path="photos").prepared(None, recorded)
    assert names_of(found) == ["cat/.old/a.png", "cat/a.png", "dog/b.png"]


def test_folders_below_are_told_where_a_kind_takes_none(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "deep/b.txt", "deep/er/c.txt")
    assert list_files(tmp_path, (".txt",), deep=False).passed_over == {"deep/": 2}


def test_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "B.TXT", "deep/c.txt")
    assert [file.name for file in list_files(tmp_path, (".txt",), deep=False).files] == ["B.TXT", "a.txt"]


# --- labels by name


def write_images(path: Path, encoded: Callable[..., bytes], names: list[str] | None, labels: list[int]) -> None:
    path.parent.mkdir(exist_ok=True)
    images = [encoded(np.full((2, 2, 3), i)) for i in range(len(labels))]
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    pq.write_table(table.replace_schema_metadata(names and {"classes": ",".join(names)}), path)


def test_files_that_name_their_classes_in_other_orders_mean_the_same(
    tmp_path: Path, source: Make, read_all: ReadAll, encoded: Callable[..., bytes]
) -> None:
    write_images(tmp_path / "p/a.parquet", encoded, ["cat", "dog"], [0, 1])
    write_images(tmp_path / "p/b.parquet", encoded, ["dog", "cat"], [0, 1])
    images = source(kind="parquet_images", path="p")
    images.files()
    assert [sample.label for sample in read_all(images)] == [0, 1, 1, 0]


def test_a_file_with_another_class_is_refused_with_both_lists(
    tmp_path: Path, source: Make, encoded: Callable[..., bytes]
) -> None:
    write_images(tmp_path / "p/a.parquet", encoded, ["cat", "dog"], [0, 1])
    write_images(tmp_path / "p/b.parquet", encoded, ["ant", "cat", "dog"], [0, 1])
    with pytest.raises(MissingSource) as caught:
        source(kind="parquet_images", path="p").files()
    assert (caught.value.found, caught.value.expected, caught.value.do) == (
        "ant, cat, dog  (b.parquet; unknown: ant)",
        "some of cat, dog, in any order",
        'name all classes in the job, in the teacher\'s order: classes = ["cat", "dog", "ant"]',
    )


def test_the_jobs_classes_serve_files_that_name_a_part_of_them(
    tmp_path: Path, source: Make, read_all: ReadAll, encoded: Callable[..., bytes]
) -> None:
    write_images(tmp_path / "p/a.parquet", encoded, ["cat", "dog"], [0, 1])
    write_images(tmp_path / "p/b.parquet", encoded, ["ant", "cat", "dog"], [0, 1])
    images = source(kind="parquet_images", path="p", classes=["dog", "cat", "ant"])
    images.files()
    assert [sample.label for sample in read_all(images)] == [1, 0, 2, 1]


def test_names_in_some_files_alone_are_refused(tmp_path: Path, source: Make, encoded: Callable[..., bytes]) -> None:
    write_images(tmp_path / "p/a.parquet", encoded, ["cat", "dog"], [0, 1])
    write_images(tmp_path / "p/b.parquet", encoded, None, [0, 1])
    with pytest.raises(MissingSource) as caught:
        source(kind="parquet_images", path="p").files()
    assert caught.value.what == "b.parquet does not say what its labels mean, and a.parquet does"


@pytest.mark.parametrize("folder", ["set[1]", "q*x", "a{b,c}"])
def test_a_path_is_no_pattern(tmp_path: Path, source: Make, encoded: Callable[..., bytes], folder: str) -> None:
    write_images(tmp_path / folder / "a.parquet", encoded, None, [0, 1])
    write_images(tmp_path / "set1" / "a.parquet", encoded, None, [0, 1, 2])
    images = source(kind="parquet_images", path=folder)
    assert (images.class_names(), images.files()["rows"].to_list()) == (["0", "1"], [2])


def test_files_that_others_count_in_their_names_are_missed(tmp_path: Path, source: Make) -> None:
    names = [f"{split}-{number:05d}-of-00004.parquet" for split, number in (("train", 0), ("train", 2), ("test", 0))]
    table = pa.table({"text": ["a", "b"], "label": [0, 1], "image": [b"", b""]})
    for name in names:
        touch(tmp_path, f"data/{name}", f"numbers/{name}")
        pq.write_table(table, tmp_path / "data" / name)
        pq.write_table(table.drop("image"), tmp_path / "numbers" / name)
    touch(tmp_path, "tars/a-000001-of-000002.tar", data=b"\0" * 10240)
    told = (
        "files that others count in their names are not there: test-00001-of-00004.parquet, "
        "test-00002-of-00004.parquet, test-00003-of-00004.parquet, train-00001-of-00004.parquet, "
        "train-00003-of-00004.parquet"
    )
    texts = {"task": "text_classification", "column": "text", "label": "label", "length": 8, "tokenizer": "t.json"}
    for kind, folder, more in (("parquet_images", "data", {}), ("text", "data", texts), ("table", "numbers", LABEL)):
        assert told in source(kind=kind, path=folder, **more).notes(), kind
        chosen = source(kind=kind, path=f"{folder}/{names[0]}", **more)  # by its own name
        assert not [note for note in chosen.notes() if "count in" in note], kind
    tars = source(kind="webdataset", path="tars", label="", size=2).notes()
    assert tars[-1].endswith("are not there: a-000000-of-000002.tar")
