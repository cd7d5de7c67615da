"""Parquet files with encoded images and labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.datasets import RawSample, Unreadable
from storage.datasets.published import parquet
from storage.errors import MissingSource

Make = Callable[..., Any]
ReadAll = Callable[..., list[RawSample]]
CIFAR = Path(__file__).parents[4] / "shared" / "data" / "cifar10-test.parquet"
HUGGING_FACE = {
    "huggingface": json.dumps({"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}})
}


@pytest.fixture
def write(tmp_path: Path, encoded: Callable[..., bytes]) -> Callable[..., Path]:
    """Write a file of five small images with labels 0, 1, 0, 1, 0."""

    def write(
        name: str = "a.parquet", *, struct: bool = True, metadata: Any = None, rows: int = 5, **columns: Any
    ) -> Path:
        images: list[Any] = [encoded(np.full((2, 2, 3), i)) for i in range(rows)]
        if struct:
            images = [{"bytes": data, "path": None} for data in images]
        table = pa.table({"image": images, "label": pa.array([i % 2 for i in range(rows)], pa.int64())} | columns)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / name, row_group_size=2)
        return tmp_path / name

    return write


@pytest.fixture
def images(source: Make) -> Any:
    return source(kind="parquet_images", path="a.parquet")


@pytest.mark.parametrize("struct", [True, False], ids=["struct", "binary"])
def test_images_come_as_structs_or_binary(write: Make, images: Any, read_all: ReadAll, struct: bool) -> None:
    write(struct=struct)
    pixels = [int(images.decode(sample.payload)[0, 0, 0]) for sample in read_all(images)]
    assert pixels == [0, 1, 2, 3, 4]


def test_labels_and_ids_follow_the_rows(write: Make, images: Any, read_all: ReadAll) -> None:
    write()
    assert [(sample.sample_id, sample.label) for sample in read_all(images)] == [
        (f"a.parquet:{i}", i % 2) for i in range(5)
    ]


@pytest.mark.parametrize(("position", "rows"), [(0, 5), (1, 3), (2, 2), (4, 1), (3, 0)])
def test_any_part_of_a_file_can_be_read(write: Make, images: Any, position: int, rows: int) -> None:
    write()
    ids = [sample.sample_id for sample in images.read("a.parquet", position, rows)]
    assert ids == [f"a.parquet:{i}" for i in range(position, position + rows)]


def test_a_folder_is_read_file_by_file_in_order_of_names(write: Make, source: Make, read_all: ReadAll) -> None:
    for name in ("data/b.parquet", "data/a.parquet"):
        write(name, rows=2)
    folder = source(kind="parquet_images", path="data")
    assert [sample.sample_id for sample in read_all(folder)] == [
        "a.parquet:0",
        "a.parquet:1",
        "b.parquet:0",
        "b.parquet:1",
    ]


def test_a_column_can_give_the_ids(write: Make, source: Make, read_all: ReadAll) -> None:
    write(rows=3, key=["x", None, "z"])
    named = source(kind="parquet_images", path="a.parquet", id="key")
    assert [sample.sample_id for sample in read_all(named)] == ["x", "a.parquet:1", "z"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (HUGGING_FACE, ["ant", "bee"]),
        ({"classes": "cat,dog"}, ["cat", "dog"]),
        ({"huggingface": "{}"}, ["0", "1"]),
        ({"huggingface": "not json"}, ["0", "1"]),
        ({"huggingface": json.dumps({"info": {"features": {"label": {"dtype": "int64"}}}})}, ["0", "1"]),
        (None, ["0", "1"]),
    ],
)
def test_class_names_come_from_the_schema_else_from_the_labels(
    write: Make, images: Any, metadata: Any, expected: list[str]
) -> None:
    write(metadata=metadata)
    assert images.class_names() == expected


def test_class_names_in_the_job_come_first(write: Make, source: Make) -> None:
    write(metadata=HUGGING_FACE)
    assert source(kind="parquet_images", path="a.parquet", classes=["x", "y"]).class_names() == ["x", "y"]


def test_the_largest_label_of_all_files_counts(write: Make, source: Make) -> None:
    write("data/a.parquet", rows=2)
    write("data/b.parquet", rows=2, label=pa.array([6, None], pa.int32()))
    assert source(kind="parquet_images", path="data").class_names() == [str(i) for i in range(7)]


def test_a_dataset_may_have_no_labels(write: Make, source: Make, read_all: ReadAll) -> None:
    write()
    unlabelled = source(kind="parquet_images", path="a.parquet", label="")
    assert (unlabelled.class_names(), {sample.label for sample in read_all(unlabelled)}) == ([], {None})


def test_an_unlabelled_dataset_may_name_its_classes(write: Make, source: Make) -> None:
    write()
    unlabelled = source(kind="parquet_images", path="a.parquet", label="", classes=["a", "b"])
    assert unlabelled.class_names() == ["a", "b"]


@pytest.mark.parametrize("missing", [None, {"bytes": None, "path": "x.png"}, {"bytes": b"", "path": None}])
def test_an_image_that_is_not_there_is_unreadable_and_keeps_its_place(
    write: Make, images: Any, read_all: ReadAll, encoded: Callable[..., bytes], missing: Any
) -> None:
    whole = {"bytes": encoded([[1]]), "path": "a"}
    write(rows=3, image=[whole, missing, whole])
    assert [str(s.payload) if isinstance(s.payload, Unreadable) else None for s in read_all(images)] == [
        None,
        "no image bytes",
        None,
    ]


@pytest.mark.parametrize("column", ["image", "label", "id"])
def test_a_missing_column_is_told_with_those_there_are(write: Make, source: Make, column: str) -> None:
    path = write()
    with pytest.raises(MissingSource) as caught:
        source(kind="parquet_images", path="a.parquet", **{column: "nope"}).files()
    assert (caught.value.what, caught.value.found) == (f"{path} has no column nope", "image, label")


@pytest.mark.parametrize(
    ("options", "what", "found"),
    [
        ({"image": "label"}, "column label of {path} holds no images", "int64"),
        ({"label": "text"}, "column text of {path} holds no labels", "string"),
        ({"image": "text"}, "column text of {path} holds no images", "string"),
        ({"image": "odd"}, "column odd of {path} holds no images", "struct<path: string>"),
    ],
)
def test_a_column_of_another_kind_is_told(write: Make, source: Make, options: Any, what: str, found: str) -> None:
    path = write(rows=2, text=["a", "b"], odd=[{"path": "a"}, {"path": "b"}])
    with pytest.raises(MissingSource) as caught:
        source(kind="parquet_images", path="a.parquet", **options).files()
    assert (caught.value.what, caught.value.found) == (what.format(path=path), found)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not parquet at all"])
def test_what_is_no_parquet_is_named(images: Any, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(MissingSource) as caught:
        images.files()
    assert caught.value.what == f"cannot read {tmp_path}/a.parquet as Parquet"


def test_a_damaged_page_names_its_file(write: Make, images: Any) -> None:
    path = write()
    data = path.read_bytes()
    images.files()
    path.write_bytes(data[:4] + bytes(200) + data[204:])
    with pytest.raises(MissingSource) as caught:
        list(images.read("a.parquet", 0, 5))
    assert caught.value.what == f"cannot read {path} as Parquet"


def test_a_missing_file_is_named(images: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingSource) as caught:
        images.files()
    assert caught.value.what == f"there is no {tmp_path}/a.parquet"


def test_a_folder_without_parquet_is_named(source: Make, tmp_path: Path) -> None:
    with pytest.raises(MissingSource) as caught:
        source(kind="parquet_images", path=".").files()
    assert caught.value.what == f"{tmp_path} holds no *.parquet file"


def test_a_rewritten_file_is_not_remembered(write: Make, images: Any, read_all: ReadAll) -> None:
    write(rows=2)
    read_all(images)
    write(rows=4)
    assert len(read_all(images)) == 4


@pytest.mark.skipif(not CIFAR.exists(), reason="needs ../shared/data/cifar10-test.parquet")
def test_real_cifar_10_decodes(source: Make) -> None:
    cifar = source(kind="parquet_images", path=str(CIFAR))
    samples = list(cifar.read(CIFAR.name, 4990, 20))
    assert (
        cifar.files()["rows"].to_list(),
        cifar.class_names()[:3],
        {cifar.decode(s.payload).shape for s in samples},
    ) == (
        [10_000],
        ["airplane", "automobile", "bird"],
        {(3, 32, 32)},
    )


@pytest.mark.parametrize(("position", "rows"), [(0, 7), (1, 3), (2, 2), (5, 2), (3, 0)])
def test_a_row_group_that_is_too_large_to_be_kept_is_read_a_few_rows_at_a_time(
    tmp_path: Path, images: Any, position: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = [{"bytes": bytes([i]) * 2**20, "path": None} for i in range(7)]
    table = pa.table({"image": large, "label": list(range(7))})
    # in pages of a row: a page is the least that can be read
    pages = {"use_dictionary": False, "write_batch_size": 1, "data_page_size": 2**20}
    pq.write_table(table, tmp_path / "a.parquet", compression="none", **pages)
    monkeypatch.setattr(parquet, "KEPT_BYTES", 2**20)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 2**20)
    before, most = pa.total_allocated_bytes(), 0
    read = []
    for sample in images.read("a.parquet", position, rows):
        most = max(most, pa.total_allocated_bytes() - before)
        read.append((sample.sample_id, sample.label, sample.payload[0]))
    assert read == [(f"a.parquet:{i}", i, i) for i in range(position, position + rows)]
    assert most < 4 * 2**20  # of 7 MiB
