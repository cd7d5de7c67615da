"""A folder of images, one sub-folder a class."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.datasets import RawSample, Unreadable
from storage.errors import MissingSource

Make = Callable[..., Any]
ReadAll = Callable[..., list[RawSample]]
RED = [[[255, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 255, 0]]]


@pytest.fixture
def folder(tmp_path: Path, encoded: Callable[..., bytes]) -> Path:
    for name in ("cat/b.png", "cat/a.PNG", "ant/deep/er/c.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(encoded(RED))
    return tmp_path / "images"


@pytest.fixture
def images(folder: Path, source: Make) -> Any:
    return source(kind="image_folder", path="images")


def test_classes_are_the_sub_folders_by_name(images: Any) -> None:
    assert images.class_names() == ["ant", "cat"]


def test_the_path_below_the_folder_is_the_id(images: Any, read_all: ReadAll) -> None:
    assert [(sample.sample_id, sample.label) for sample in read_all(images)] == [
        ("ant/deep/er/c.png", 0),
        ("cat/a.PNG", 1),
        ("cat/b.png", 1),
    ]


def test_files_that_are_no_images_are_passed_over(images: Any, folder: Path) -> None:
    for name in ("cat/notes.txt", "cat/Thumbs.db", "labels.csv"):
        (folder / name).write_bytes(b"")
    assert len(images.files()) == 3


def test_hidden_folders_are_no_classes(images: Any, folder: Path) -> None:
    (folder / ".cache").mkdir()
    assert images.class_names() == ["ant", "cat"]


def test_a_class_that_is_added_is_seen(images: Any, folder: Path) -> None:
    images.class_names()
    (folder / "bee").mkdir()
    assert images.class_names() == ["ant", "bee", "cat"]


def test_a_changed_file_has_another_version(images: Any, folder: Path) -> None:
    before = images.files()["version"].to_list()
    os.utime(folder / "cat" / "b.png", (1, 1))
    assert [a != b for a, b in zip(before, images.files()["version"], strict=True)] == [False, False, True]


def test_a_missing_folder_is_named(source: Make, tmp_path: Path) -> None:
    with pytest.raises(MissingSource) as caught:
        source(kind="image_folder", path="no").files()
    assert (caught.value.what, caught.value.do) == (
        f"there is no {tmp_path}/no",
        "paths in a job file are relative to its own folder",
    )


def test_a_file_is_no_folder_of_images(source: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MissingSource) as caught:
        source(kind="image_folder", path="file").files()
    assert caught.value.what == f"{tmp_path}/file is not a folder"


def test_a_folder_without_classes_says_what_is_expected(source: Make, tmp_path: Path) -> None:
    with pytest.raises(MissingSource) as caught:
        source(kind="image_folder", path=".").files()
    assert caught.value.what == f"{tmp_path} has no sub-folders"


def test_empty_classes_give_an_empty_dataset(source: Make, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    assert source(kind="image_folder", path=".").files().rows() == []


def test_a_file_that_is_gone_is_unreadable_and_keeps_its_id(images: Any, folder: Path) -> None:
    images.files()
    (folder / "cat" / "b.png").unlink()
    (sample,) = images.read("cat/b.png", 0, 1)
    assert (sample.sample_id, str(sample.payload), sample.label) == (
        "cat/b.png",
        "FileNotFoundError: No such file or directory",
        1,
    )


def test_a_name_that_no_table_can_hold_is_told(images: Any, folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/cat/\xff.png"))).write_bytes(b"")
    with pytest.raises(MissingSource) as caught:
        images.files()
    assert caught.value.found == r"'cat/\udcff.png'"


# --- decoding


def test_an_image_becomes_channels_first_bytes(images: Any, encoded: Callable[..., bytes]) -> None:
    array = images.decode(encoded(RED))
    assert (array.dtype, array.tolist()) == (np.uint8, np.transpose(RED, (2, 0, 1)).tolist())


def test_grayscale_is_spread_over_three_channels(images: Any, encoded: Callable[..., bytes]) -> None:
    assert images.decode(encoded([[7, 8]])).tolist() == [[[7, 8]]] * 3


def test_colours_become_one_channel_if_asked(source: Make, encoded: Callable[..., bytes]) -> None:
    one = source(kind="image_folder", path=".", channels=1)
    assert one.decode(encoded([[[100, 100, 100], [255, 0, 0]]])).tolist() == [[[100, 76]]]  # ITU-R 601: 0.299 red


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_mode_becomes_rgb(images: Any, encoded: Callable[..., bytes], mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert images.decode(encoded(np.full((4, 5, 3), 255, np.uint8), mode, kind)).shape == (3, 4, 5)


@pytest.mark.parametrize(("size", "shape"), [(6, (3, 6, 6)), ([2, 3], (3, 2, 3)), (None, (3, 4, 5))])
def test_images_are_resized_to_height_and_width(
    source: Make, encoded: Callable[..., bytes], size: Any, shape: Any
) -> None:
    resized = source(kind="image_folder", path=".", size=size)
    assert resized.decode(encoded(np.zeros((4, 5, 3)))).shape == shape


@pytest.mark.parametrize("size", [0, -1, [3], [3, 3, 3], [0, 3], 2.5, "32"])
def test_a_size_that_is_none_is_refused(source: Make, size: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        source(kind="image_folder", path=".", size=size)


def test_resizing_keeps_a_flat_colour(source: Make, encoded: Callable[..., bytes]) -> None:
    resized = source(kind="image_folder", path=".", size=7)
    assert np.unique(resized.decode(encoded(np.full((20, 30, 3), 90)))).tolist() == [90]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:20],
        lambda data: data[:-30],
        lambda _: b"GIF89a",
        lambda _: b"\0" * 99,
    ],
)
def test_a_damaged_image_is_unreadable_with_a_reason(images: Any, encoded: Callable[..., bytes], damage: Any) -> None:
    with pytest.raises(Unreadable, match="Error"):
        images.decode(damage(encoded(np.random.default_rng(0).integers(0, 256, (32, 32, 3)))))


def test_the_reason_of_what_is_no_image_is_the_same_each_time(images: Any) -> None:
    with pytest.raises(
        Unreadable, match=r"^UnidentifiedImageError: cannot identify image file, it is not an image that Pillow knows$"
    ):
        images.decode(b"no image")


def test_a_truncated_jpeg_is_unreadable(images: Any, encoded: Callable[..., bytes]) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (32, 32, 3)), kind="JPEG")
    with pytest.raises(Unreadable, match="truncated"):
        images.decode(data[: len(data) // 2])


def test_sixteen_bits_are_refused_for_pillow_would_clip_them(images: Any, encoded: Callable[..., bytes]) -> None:
    deep = encoded(np.full((2, 2), 40_000, np.uint16), "I;16")
    with pytest.raises(Unreadable, match="I;16 has more than 8 bits"):
        images.decode(deep)


def test_a_bomb_is_unreadable(images: Any, encoded: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Unreadable, match="DecompressionBomb"):
        images.decode(encoded(np.zeros((9, 9, 3))))


def test_what_decides_content_is_kept_and_the_path_is_not(source: Make) -> None:
    assert source(kind="image_folder", path="x", size=32, channels=1).content() == {
        "kind": "image_folder",
        "validation": 0.0,
        "seed": 0,
        "channels": 1,
        "size": 32,
        "orientation": "exif",
        "background": [255],
    }


@pytest.mark.parametrize(("size", "kept"), [(8, 8), ([8, 8], 8), ([8, 9], [8, 9]), (None, None)])
def test_one_size_has_one_fingerprint_however_it_is_written(source: Make, size: Any, kept: Any) -> None:
    assert source(kind="image_folder", path="x", size=size).content()["size"] == kept
