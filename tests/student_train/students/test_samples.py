"""Whoever has a student's folder and nothing else is told by it what its evaluation was."""

from __future__ import annotations

import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from storage.cache import Cache
from storage.errors import BadRequest, CorruptObject
from storage.inputs import INPUTS
from storage.inputs.arguments import to_float
from student_train.run_files.predictions import read_predictions
from student_train.running.train import train_students
from student_train.students import Student, load_student
from tests.damage import flipped
from tests.student_train.toys import Recipe, request_of, student, write_cache
from tests.teacher_cache.toys import build, write_job
from tests.texts.toys import request, small_encoder, text_cache, texts

DOCUMENT = Path(__file__).resolve().parents[3] / "docs/jobs/students.md"
POLICY = 'size = 12\nresize = "crop"\nfilter = "bicubic"\nbackground = [9, 99, 199]\n'
CLASSES = ("boat", "cat")


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of every make, and of a student that was trained on them from a cache that is gone."""
    folder, draw = tmp_path_factory.mktemp("kitchen"), np.random.default_rng(3)
    for place in range(40):
        file = folder / "photos" / CLASSES[place % 2] / f"{place}{('.png', '.jpg', '.tiff')[place % 3]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 128, (20 + place % 5, 14 + place % 4, 4)) + 127 * (place % 2)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")
        exif = Image.Exif()
        exif[0x0112] = 1 + place % 8  # which way up its camera was
        (image.convert("RGB") if file.suffix == ".jpg" else image).save(file, exif=exif)
    build(
        write_job(
            folder,
            f'[[dataset]]\nname = "toy"\nkind = "image_folder"\npath = "photos"\nvalidation = 0.5\n{POLICY}',
        )
    )
    own = student("small", architecture="cnn", options={"widths": [4, 8]}, epochs=12, mean=(0.4,), std=(0.2,))
    train_students(request_of(Cache.open(str(folder / "cache")), folder / "runs/mine", own))
    (folder / "cache").rename(folder / "kept")
    return folder


def held(kitchen: Path) -> dict[str, int]:
    """Return the class that the student gave each held picture when it was measured, by file."""
    found = read_predictions(kitchen / "runs/mine/small")
    assert found is not None
    return dict(found.table.select("sample_id", "top").iter_rows())


def test_a_held_picture_is_the_very_input_of_the_evaluation(kitchen: Path) -> None:
    small, cache = load_student(kitchen / "runs/mine/small"), Cache.open(str(kitchen / "kept"))
    rows, names = cache.read_inputs("toy", 0), cache.samples().of("toy").sort("row")["sample_id"]
    assert len(names) == len(rows) == 40
    for name, row in zip(names, rows, strict=True):
        data, expected = (kitchen / "photos" / name).read_bytes(), to_float(torch.from_numpy(row[None]))
        assert torch.equal(small.prepare([data]), expected), name
        image = Image.open(BytesIO(data))
        if image.format == "TIFF" and image.getexif().get(0x0112, 1) != 1:
            with pytest.raises(BadRequest, match="cannot be read"):  # Pillow would turn it as it goes
                small.prepare([image])
        else:
            assert torch.equal(small.prepare([image]), expected), name


def test_a_held_picture_gets_the_class_of_the_evaluation(kitchen: Path) -> None:
    small, expected = load_student(kitchen / "runs/mine/small"), held(kitchen)
    assert len(expected) > 10
    assert set(expected.values()) == {0, 1}  # else the student has learned nothing, and this proves nothing
    with torch.no_grad():
        scores = small(small.prepare([(kitchen / "photos" / name).read_bytes() for name in expected]))
    assert scores.argmax(1).tolist() == list(expected.values())
    assert small.classes == CLASSES


def test_the_ten_lines_of_the_document_say_the_class_of_the_evaluation(
    kitchen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    assert len(code.splitlines()) <= 10
    shutil.copytree(kitchen / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for name, top in held(kitchen).items():
        if name.endswith(".tiff"):
            continue  # some are turned, and of those bytes are taken alone
        shutil.copy(kitchen / "photos" / name, tmp_path / "cat.jpg")  # whatever it is: Pillow looks inside
        exec(code, {})
        assert capsys.readouterr().out.startswith(f"{CLASSES[top]} ")


def test_a_picture_of_ones_own_stays_as_it_was_opened(kitchen: Path) -> None:
    with Image.open(kitchen / "photos/cat/7.jpg") as image:
        before = (image.size, image.getexif().get(0x0112), image.tobytes())
        load_student(kitchen / "runs/mine/small").prepare([image])
        assert (image.size, image.getexif().get(0x0112), image.tobytes()) == before


def test_a_text_gets_the_class_of_the_evaluation(tmp_path: Path) -> None:
    cache = text_cache(tmp_path)
    train_students(request(cache, tmp_path / "runs", small_encoder(epochs=6)))
    found = read_predictions(tmp_path / "runs/encoder")
    assert found is not None
    shutil.rmtree(tmp_path / "cache")
    written = [text for _, text in texts(60)]
    places = [int(name.rpartition(":")[2]) for name in found.table["sample_id"]]
    encoder = load_student(tmp_path / "runs/encoder")
    with torch.no_grad():
        scores = encoder(encoder.prepare([written[place] for place in places]))
    assert scores.argmax(1).tolist() == found.table["top"].to_list()
    assert encoder.classes == ("fish", "fowl", "plant")


def test_a_damaged_tokenizer_is_noticed(tmp_path: Path) -> None:
    train_students(request(text_cache(tmp_path), tmp_path / "runs", small_encoder(epochs=1)))
    path = tmp_path / "runs/encoder/tokenizer.json"
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, 4321))
    with pytest.raises(CorruptObject, match=r"tokenizer\.json is not what was written"):
        load_student(tmp_path / "runs/encoder")
    path.unlink()
    with pytest.raises(CorruptObject, match=r"tokenizer\.json is not what was written"):
        load_student(tmp_path / "runs/encoder")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Return a student of arrays, (1, 6, 6)."""
    folder = tmp_path_factory.mktemp("arrays")
    train_students(request_of(write_cache(folder / "cache", Recipe()), folder, student(epochs=1)))
    return load_student(folder / "a")


def test_arrays_are_taken_as_the_dataset_had_them(small: Student) -> None:
    rows = np.arange(72, dtype=np.uint8).reshape(2, 1, 6, 6)
    assert torch.equal(small.prepare(list(rows)), torch.from_numpy(rows) / 255)


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        ([], "no sample"),
        ([np.zeros((1, 5, 5), np.uint8)], "a row of shape (1, 5, 5), uint8"),
        # of pixels: neither over 255 nor told from those that are
        ([np.zeros((1, 6, 6), np.float32)], "a row of shape (1, 6, 6), float32"),
        ([np.zeros((1, 6, 6), np.uint8), np.full((1, 6, 6), 0.9)], "a row of shape (1, 6, 6), float64"),
        ([np.full((1, 6, 6), 300)], "a row of shape (1, 6, 6), int64"),
        ([np.full((1, 6, 6), "a", object)], "a row of shape (1, 6, 6), object"),
        (["a text"], "str"),
        ([Image.new("L", (6, 6))], "Image"),
        ("a text", "one str"),
        (b"of a file", "one bytes"),
        (Image.new("L", (6, 6)), "one Image"),
    ],
    ids=[
        "none",
        "of another shape",
        "floats",
        "one of floats",
        "integers",
        "objects",
        "a text",
        "an image",
        "one text alone",
        "one file alone",
        "one image alone",
    ],
)
def test_what_is_no_sample_of_the_dataset_is_refused(small: Student, samples: Any, found: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        small.prepare(samples)
    assert refusal.value.found == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ({"kind": ["image_folder"]}, "Image"),
        ({"kind": "image_folder"}, "channels"),
        ({"kind": "image_folder", "channels": 1, "size": "large"}, "size"),
        ({"kind": "image_folder", "channels": 1, "size": 10**9}, "`size`"),
        ({"kind": "image_folder", "channels": 3, "size": 6}, "(3, 6, 6)"),
        ({"kind": "text"}, "Image"),
    ],
    ids=["a kind that is none", "no channels", "no number", "more than there is memory", "other channels", "texts"],
)
def test_a_source_that_cannot_be_of_this_student_is_told(small: Student, source: dict[str, Any], found: str) -> None:
    made = Student(small.blueprint.model_copy(update={"source": source}), small.network)
    with pytest.raises(BadRequest) as refusal:
        made.prepare([Image.new("L", (8, 8))])
    assert found in str(refusal.value)


def test_tokens_are_no_floats() -> None:
    assert not INPUTS["tokens"].takes(np.dtype("float32"))
    assert INPUTS["texts"].takes(np.dtype("int64"))
    assert not INPUTS["values"].takes(np.dtype("uint8"))  # a dataset of these would be of pixels
