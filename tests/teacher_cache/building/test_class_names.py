"""A class has a name wherever it goes (invariant 13): teachers and datasets that order their classes differently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from storage.cache import Cache
from storage.errors import BadRequest, BadTeacher
from storage.format.sealed import read_json
from student_train.students import Blueprint, load_student, save_student
from student_train.students.build import build_student
from tests.teacher_cache.toys import build, teacher_section, write_digits, write_job, write_teacher

ARRAYS = '[[dataset]]\nname = "d"\nkind = "arrays"\npath = "x.npz"\nclasses = {classes}\n'
STUDENT = '[[teacher]]\nname = "t"\nstudent = "run"\n'
FACTORY = '[[teacher]]\nname = "t"\nfactory = "t.py:build"\nweights = "t.safetensors"\n{more}'


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    """Images of three classes, and a student that calls its scores cat, dog, ship."""
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 2, 2), np.uint8)
    np.savez(tmp_path / "x.npz", inputs=images, labels=np.arange(6) % 3)
    blueprint = Blueprint(
        architecture="mlp",
        options={"hidden": [3]},
        num_classes=3,
        input_shape=(1, 2, 2),
        mean=(0.0,),
        std=(1.0,),
        classes=("cat", "dog", "ship"),
    )
    torch.manual_seed(0)
    save_student(tmp_path / "run", blueprint, build_student(blueprint).state_dict())
    layer = torch.nn.Linear(4, 3)
    save_file({f"1.{name}": value for name, value in layer.state_dict().items()}, tmp_path / "t.safetensors")
    (tmp_path / "t.py").write_text(
        "import torch\ndef build(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))\n"
    )
    return tmp_path


def logits(folder: Path, classes: list[str], teacher: str, cache: str) -> np.ndarray:
    listed = str(classes).replace("'", '"')
    build(write_job(folder, ARRAYS.format(classes=listed), teacher, cache=cache))
    return Cache.open(str(folder / cache)).read_targets("d", "t", 0)["logits"]


def test_a_students_scores_follow_the_datasets_classes_by_name(kitchen: Path) -> None:
    images = torch.from_numpy(np.load(kitchen / "x.npz")["inputs"]).float() / 255
    own = load_student(kitchen / "run")(images).detach().numpy()
    assert np.allclose(logits(kitchen, ["cat", "dog", "ship"], STUDENT, "a"), own, atol=1e-6)
    assert np.allclose(logits(kitchen, ["ship", "cat", "dog"], STUDENT, "b"), own[:, [2, 0, 1]], atol=1e-6)


def test_other_classes_are_refused_with_both_lists(kitchen: Path) -> None:
    with pytest.raises(BadRequest) as caught:
        logits(kitchen, ["boat", "dog", "kitten"], STUDENT, "c")
    assert (caught.value.found, caught.value.expected) == (
        "cat, dog, ship  (unknown: cat, ship)",
        "boat, dog, kitten  (missing: boat, kitten)",
    )


def test_a_factorys_scores_may_be_named_in_the_job(kitchen: Path) -> None:
    unnamed = logits(kitchen, ["cat", "dog", "ship"], FACTORY.format(more=""), "d")
    named = FACTORY.format(more='classes = ["cat", "dog", "ship"]\n')
    assert np.array_equal(logits(kitchen, ["cat", "dog", "ship"], named, "e"), unnamed)
    assert np.array_equal(logits(kitchen, ["dog", "ship", "cat"], named, "f"), unnamed[:, [1, 2, 0]])


def test_a_student_without_names_is_taken_as_it_was(kitchen: Path) -> None:
    path = kitchen / "run/student.json"
    with_names = logits(kitchen, ["cat", "dog", "ship"], STUDENT, "g")
    said = {key: value for key, value in read_json(path).items() if key != "classes"}
    path.write_text(json.dumps(said | {"format_version": 1}))
    assert np.array_equal(logits(kitchen, ["x", "y", "z"], STUDENT, "h"), with_names)


def test_two_classes_of_one_name_are_refused(kitchen: Path) -> None:
    with pytest.raises(BadRequest) as caught:
        logits(kitchen, ["cat", "dog", "cat"], FACTORY.format(more=""), "i")
    assert (caught.value.what, caught.value.found) == ("two classes of dataset d have one name", "cat")
    with pytest.raises(BadRequest) as caught:
        logits(kitchen, ["cat", "dog", "ship"], FACTORY.format(more='classes = ["cat", "dog", "cat"]\n'), "j")
    assert caught.value.what == "two classes of teacher t have one name"


def test_another_number_of_classes_is_refused_with_their_names(tmp_path: Path) -> None:
    write_teacher(tmp_path, classes=7)
    with pytest.raises(BadTeacher) as caught:
        build(write_job(tmp_path, write_digits(tmp_path, 20), teacher_section(classes=7)))
    error = caught.value
    assert (error.found, error.expected) == ("7 logits per row", "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9")
    assert error.do is not None
    assert error.do.startswith("give the dataset's `classes` as the teacher was trained on them")
