from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from storage.errors import BadRequest, BadWeights, CorruptObject, MissingSource, UnsupportedFormat
from student_train.students import Blueprint, Student, build_student, load_student, save_student
from tests.damage import edit_json

TINY = """
import torch
def tiny(num_classes, input_shape, *, width=3):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, num_classes))
def nothing(num_classes, input_shape):
    return 3
def broken(num_classes, input_shape):
    raise KeyError("oh")
"""


def spec(**fields: Any) -> Blueprint:
    defaults = {"architecture": "mlp", "num_classes": 5, "input_shape": (3, 8, 8), "mean": (0.5,), "std": (0.5,)}
    return Blueprint.model_validate(defaults | fields)


def built(**fields: Any) -> Student:
    torch.manual_seed(0)
    return build_student(spec(**fields)).eval()


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("mlp", {}),
        ("mlp", {"hidden": []}),
        ("mlp", {"hidden": [7, 9], "dropout": 0.5}),
        ("cnn", {}),
        ("cnn", {"widths": [4], "dropout": 0.1}),
        ("resnet", {}),
        ("resnet", {"depth": 8, "width": 4}),
    ],
)
def test_an_architecture_gives_a_logit_per_class(architecture: str, options: dict[str, Any]) -> None:
    assert built(architecture=architecture, options=options)(torch.rand(2, 3, 8, 8)).shape == (2, 5)


def test_a_resnet_has_the_depth_that_it_is_asked_for() -> None:
    layers = [m for m in built(architecture="resnet", options={"depth": 20}).modules() if hasattr(m, "weight")]
    assert sum(isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) for layer in layers) == 20


def test_resnet20_for_cifar_has_the_parameters_of_the_paper() -> None:
    student = built(architecture="resnet", num_classes=10, input_shape=(3, 32, 32))
    assert round(sum(p.numel() for p in student.parameters()) / 1e6, 2) == 0.27


@pytest.mark.parametrize(
    ("architecture", "options", "found"),
    [
        ("mlp", {"hidden": [1] * 1025}, "at most 1024 widths"),
        ("mlp", {"hidden": [0]}, "hidden = \\[0\\]"),
        ("mlp", {"hiden": [4]}, "rename hiden → hidden"),
        ("mlp", {"hidden": "abc"}, "does not take this option"),
        ("cnn", {"widths": []}, "widths = \\[\\]"),
        ("cnn", {"widths": [4, 4, 4, 4, 4]}, "16 by 16 pixels"),
        ("resnet", {"depth": 21}, "depth = 21"),
        ("resnet", {"depth": 10**9 * 6 + 2}, "1202"),
        ("resnet", {"width": 0}, "width = 0"),
        ("vgg", {}, "no architecture 'vgg'"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(
    architecture: str, options: dict[str, Any], found: str
) -> None:
    with pytest.raises(BadRequest, match=found):
        build_student(spec(architecture=architecture, options=options))


def test_normalisation_is_part_of_the_student() -> None:
    student = built(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    inputs = torch.rand(2, 3, 8, 8)
    by_hand = (inputs - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 0.6, 0.7])[:, None, None]
    assert torch.equal(student(inputs), student.network(by_hand))


def test_a_mean_for_another_number_of_channels_is_refused() -> None:
    with pytest.raises(BadRequest, match="`mean` does not fit the inputs"):
        build_student(spec(mean=(0.1, 0.2)))


@pytest.mark.parametrize("architecture", ["mlp", "cnn", "resnet"])
def test_a_saved_student_is_loaded_bit_for_bit(tmp_path: Path, architecture: str) -> None:
    student = built(architecture=architecture, mean=(0.1, 0.2, 0.3))
    save_student(tmp_path, spec(architecture=architecture, mean=(0.1, 0.2, 0.3)), student.state_dict())
    inputs = torch.rand(4, 3, 8, 8)
    assert torch.equal(load_student(tmp_path)(inputs), student(inputs))


def test_a_factory_of_ones_own_is_called_with_the_options(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(TINY)
    student = built(architecture=f"{tmp_path}/m.py:tiny", options={"width": 4})
    assert student(torch.rand(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize(("function", "found"), [("nothing", "returned int"), ("broken", "KeyError: 'oh'")])
def test_a_factory_that_gives_no_model_is_refused(tmp_path: Path, function: str, found: str) -> None:
    (tmp_path / "m.py").write_text(TINY)
    with pytest.raises(BadRequest) as refusal:
        built(architecture=f"{tmp_path}/m.py:{function}")
    assert found in str(refusal.value)


def test_loading_runs_no_code_that_only_the_file_names(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + TINY)
    folder = tmp_path / "run"
    save_student(folder, spec(), built().state_dict())
    edit_json(folder / "student.json", architecture=f"{tmp_path}/evil.py:tiny")
    with pytest.raises(BadRequest, match="an architecture of its own"):
        load_student(folder)
    assert not (tmp_path / "ran").exists()


def test_loading_under_another_factory_than_the_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(TINY)
    own = f"{tmp_path}/m.py:tiny"
    save_student(tmp_path, spec(architecture=own), built(architecture=own).state_dict())
    with pytest.raises(BadRequest, match="an architecture of its own"):
        load_student(tmp_path, f"{tmp_path}/m.py:broken")


def test_a_factory_of_ones_own_is_loaded_when_the_caller_names_it(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(TINY)
    own = f"{tmp_path}/m.py:tiny"
    student = built(architecture=own)
    save_student(tmp_path, spec(architecture=own), student.state_dict())
    inputs = torch.rand(2, 3, 8, 8)
    assert torch.equal(load_student(tmp_path, own)(inputs), student(inputs))


def test_a_folder_without_a_student_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingSource, match=str(tmp_path)):
        load_student(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-3], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda _: b""]
)
def test_damaged_weights_are_noticed(tmp_path: Path, damage: Any) -> None:
    save_student(tmp_path, spec(), built().state_dict())
    path = tmp_path / "student.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptObject, match=r"student\.safetensors is not what was written"):
        load_student(tmp_path)


def test_weights_of_another_size_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    save_student(tmp_path, spec(), built().state_dict())
    edit_json(tmp_path / "student.json", options={"hidden": [10**9]})  # 768 GB if built
    with pytest.raises(BadWeights, match=r"network\.hidden1\.0\.weight: \(\(256, 192\)"):
        load_student(tmp_path)


def test_a_description_that_is_not_one_is_refused(tmp_path: Path) -> None:
    save_student(tmp_path, spec(), built().state_dict())
    (tmp_path / "student.json").write_text('{"architecture": "mlp", "format_version": 1}')
    with pytest.raises(BadWeights, match="describes no student"):
        load_student(tmp_path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    save_student(tmp_path, spec(), built().state_dict())
    (tmp_path / "student.json").write_text('{"format_version": 3}')
    with pytest.raises(UnsupportedFormat, match="format 3"):
        load_student(tmp_path)


def test_weights_are_plain_safetensors(tmp_path: Path) -> None:
    save_student(tmp_path, spec(), built().state_dict())
    assert safetensors.torch.load_file(tmp_path / "student.safetensors").keys() == built().state_dict().keys()
