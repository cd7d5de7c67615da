"""Students at a size of their own, of pictures kept encoded or as pixels: trained, measured, used, exported."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from storage.cache import Cache
from storage.errors import BadRequest
from storage.inputs.encoded import OwnSize
from student_train.feed.batches import ArrayKey, Needs
from student_train.feed.order.views import EpochViews
from student_train.feed.residency import FeedPool
from student_train.feed.selection import select_rows
from student_train.students import load_student
from tests.conftest import Program
from tests.encoded.toys import dataset, seeing, train, write_photographs, write_teacher
from tests.teacher_cache.toys import build, write_job

VIEWS = """[views]
count = 2
plain = true
transforms = [{ kind = "random_resized_crop", scale = [0.3, 0.9] }, { kind = "flip" }]
"""
STUDENTS = """cache = "cache"
runs = "runs"
train = "photographs/train"
validation = "photographs/validation"
residency = "RESIDENCY"
[defaults]
architecture = "cnn"
options = { widths = [4, 8] }
objective = [{ loss = "labels" }, { loss = "kd", teacher = "same", temperature = 2.0 }]
epochs = 2
batch_size = 6
[[student]]
name = "whole"
[[student]]
name = "little"
size = 20
filter = "bicubic"
"""


def story(folder: Path, extra: str, *more: str) -> Path:
    """Return a folder with photographs, a cache of them at 32², and the job of two students."""
    write_photographs(folder / "photographs")
    write_teacher(folder)
    assert build(write_job(folder, dataset(extra), seeing("same"), *more)).exit_code == 0
    return folder


def trained(program: Program, folder: Path, residency: str = "stream") -> Path:
    """Return the folder of the smaller student, trained beside the other one in one job."""
    (folder / "students.toml").write_text(
        STUDENTS.replace("RESIDENCY", residency).replace('"runs"', f'"runs-{residency}"')
    )
    ended = program("student", "train", folder / "students.toml", "--json")
    assert ended.code == 0, ended.err
    return folder / f"runs-{residency}/little"


def answers(program: Program, who: Path, folder: Path) -> dict[str, tuple[str, float]]:
    out = folder / f"{who.stem}.csv"
    ended = program("student", "predict", who, folder / "photographs", "-o", out)
    assert ended.code == 0, ended.err
    with out.open() as lines:
        return {row["sample_id"]: (row["class"], float(row["probability"])) for row in csv.DictReader(lines)}


def accuracy(program: Program, run: Path, *rows: Any) -> tuple[float, int]:
    ended = program("student", "eval", run, *rows, "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out)
    return said["figures"]["accuracy"], said["rows"]


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "shape"), [('inputs = "encoded"', (3, 20, 20)), ("", (3, 32, 32))])
def test_a_student_of_its_own_size_goes_from_the_cache_to_an_onnx_file(
    program: Program, tmp_path: Path, extra: str, shape: tuple[int, ...]
) -> None:
    folder = story(tmp_path, extra)
    run, again = trained(program, folder), trained(program, folder, "device")
    assert (run / "student.safetensors").read_bytes() == (again / "student.safetensors").read_bytes()
    student = load_student(run)
    assert student.blueprint.input_shape == shape
    assert student.normalise(torch.rand(1, *shape)).shape == (1, 3, 20, 20)
    every = ("photographs", "--cache", folder / "cache")
    assert accuracy(program, run, *every) == accuracy(program, run, folder / "photographs")
    said = answers(program, run, folder)
    ended = program("student", "export", run, "--format", "onnx", "-o", folder / "onnx")
    assert ended.code == 0, ended.err
    assert "held rows of photographs/validation" in (folder / "onnx/README.md").read_text()
    exported = answers(program, folder / "onnx/model.onnx", folder)
    assert exported.keys() == said.keys()
    assert all(exported[name][0] == said[name][0] for name in said)
    assert all(abs(exported[name][1] - said[name][1]) < 1e-4 for name in said)
    about = json.loads((folder / "onnx/preprocessing.json").read_text())
    session = onnxruntime.InferenceSession(str(folder / "onnx/model.onnx"))
    side = about["samples"]["size"]
    assert (side, about.get("resized_within", {}).get("size")) == ((20, None) if extra else (32, [20, 20]))
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    for name in list(said)[:4]:  # by nothing but the file and what it says of itself
        with Image.open(folder / "photographs" / name) as image:
            resample = filters[about["samples"].get("filter", "bilinear")]
            pixels = np.asarray(image.convert("RGB").resize((side, side), resample), np.float32) / 255
        (logits,) = session.run(None, {"inputs": pixels.transpose(2, 0, 1)[None]})
        assert about["classes"][int(logits[0].argmax())] == said[name][0]


def test_an_encoded_picture_is_decoded_at_the_size_of_the_student_from_the_same_box(tmp_path: Path) -> None:
    folder = story(tmp_path, 'inputs = "encoded"', seeing("small", 'size = 20\nfilter = "bicubic"'), VIEWS)
    cache, key = Cache.open(str(folder / "cache")), ArrayKey("small", "feature/seen")
    needs, views = Needs(features=frozenset({key})), cache.views("photographs")
    assert views is not None
    for place in ("stream", "device"):
        found = select_rows(cache.samples(), "photographs", needs, views=EpochViews(views, 2))
        selection = replace(found, own=OwnSize((20, 20), "bicubic"))
        feed = FeedPool(cache, torch.device("cpu"), place=place, window_shards=2).feed(selection, needs)
        for epoch in (0, 1):
            batches = list(feed.shuffled(5, seed=0, epoch=epoch))
            assert sum(len(batch.shown) for batch in batches) == 24
            for batch in batches:
                assert torch.equal(batch.features[key], batch.inputs)  # as that teacher saw it, to the byte


@pytest.mark.slow
def test_a_student_of_its_own_size_teaches_what_it_predicts(program: Program, tmp_path: Path) -> None:
    folder = story(tmp_path, 'inputs = "encoded"')
    run = trained(program, folder)
    said = answers(program, run, folder)
    (folder / "next").mkdir()
    (folder / "next/photographs").symlink_to(folder / "photographs")
    teacher = f'[[teacher]]\nname = "before"\nstudent = "{run}"\n'
    assert build(write_job(folder / "next", dataset(), teacher)).exit_code == 0
    table = Cache.open(str(folder / "next/cache")).samples().of("photographs", ["before"])
    spec = Cache.open(str(folder / "next/cache")).dataset("photographs")
    found = dict(zip(table["sample_id"], table["before_top"], strict=True))
    assert {name: spec.classes[top] for name, top in found.items()} == {name: each for name, (each, _) in said.items()}


def test_a_size_that_shows_something_else_is_refused(tmp_path: Path) -> None:
    folder = story(tmp_path, 'inputs = "encoded"\nresize = "crop"')
    with pytest.raises(BadRequest, match="student small would see another part of the pictures of photographs"):
        train(folder / "cache", tmp_path / "runs", "stream", "same", of_student={"size": [20, 30]})
    pad = '[views]\ncount = 1\nplain = true\ntransforms = [{ kind = "pad_crop", padding = 2 }]\n'
    other = story(tmp_path / "views", 'inputs = "encoded"', pad)
    with pytest.raises(BadRequest, match="at which these views of photographs would be others"):
        train(other / "cache", tmp_path / "runs", "stream", "same", of_student={"size": 20})
    train(other / "cache", tmp_path / "plain", "stream", "same", views=0, of_student={"size": 20})


def test_another_filter_than_that_of_what_it_starts_from_is_refused(tmp_path: Path) -> None:
    folder = story(tmp_path, 'inputs = "encoded"')
    own = {"size": 20, "filter": "bicubic", "epochs": 1}
    train(folder / "cache", tmp_path / "runs", "stream", None, of_student=own)
    start = {"architecture": None, "options": {}, "start": str(tmp_path / "runs/small"), "epochs": 1}
    for said in ({"size": 20}, {"size": 20, "filter": "nearest"}):
        with pytest.raises(BadRequest, match="resizes pictures otherwise than what it starts from"):
            train(folder / "cache", tmp_path / "next", "stream", None, of_student=start | said)
    for number, said in enumerate(({}, {"size": 20, "filter": "bicubic"})):
        train(folder / "cache", tmp_path / f"next{number}", "stream", None, of_student=start | said)
        spec = load_student(tmp_path / f"next{number}/small").blueprint
        assert spec.source is not None
        assert (spec.size, spec.filter, spec.source["filter"]) == ((20, 20), "bicubic", "bicubic")


def test_pictures_that_come_at_two_sizes_are_refused(tmp_path: Path) -> None:
    folder = story(tmp_path, 'inputs = "encoded"', dataset("").replace('name = "photographs"', 'name = "pixels"'))
    cache, own = folder / "cache", dict[str, object](size=20, epochs=1)
    for rows in ({"validation": "pixels/validation"}, {"train": ["photographs/train", "pixels/train"]}):
        with pytest.raises(BadRequest, match="can be shown one dataset and not the other"):
            train(cache, tmp_path / "runs", "stream", None, of_student=own, **rows)
    pixels: dict[str, object] = {"train": "pixels/train", "validation": "photographs/validation"}
    train(cache, tmp_path / "runs", "stream", None, of_student=own, **pixels)  # its network resizes either
