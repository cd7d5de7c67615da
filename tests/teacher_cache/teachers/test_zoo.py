"""Models of timm and torchvision by name: run where these can be imported, which beside a torch for CPUs is rare."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from storage.cache import Cache
from storage.errors import BadRequest, BadTeacher, BadWeights
from teacher_cache.teachers.kinds import KINDS
from teacher_cache.teachers.options import TeacherOptions
from tests.teacher_cache.toys import Silent, build, write_job

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def library(kind: str) -> Any:
    try:
        return importlib.import_module(kind)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{kind} cannot be imported here: {error}")


def network(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "timm":
        return library(kind).create_model("resnet18", pretrained=False, num_classes=3).eval()
    return library(kind).models.get_model("resnet18", weights=None, num_classes=3).eval()


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_a_model_by_its_name_is_normalised_as_it_was_trained(tmp_path: Path, kind: str) -> None:
    model = network(kind)
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    dataset = '[[dataset]]\nname = "d"\nkind = "arrays"\npath = "images.npy"\nclasses = ["a", "b", "c"]\n'
    section = f'[[teacher]]\nname = "net"\nkind = "{kind}"\nmodel = "resnet18"\nweights = "net.safetensors"\n'
    watcher = Silent()
    build(write_job(tmp_path, dataset, section + "arguments = { num_classes = 3 }\n"), watcher=watcher)
    stored = Cache.open(str(tmp_path / "cache")).read_targets("d", "net", 0)["logits"]
    with torch.inference_mode():
        assert np.allclose(stored, model((torch.from_numpy(images) / 255 - MEAN) / STD), atol=1e-4)
    assert "mean (0.485, 0.456, 0.406)" in "\n".join(watcher.notes)
    assert "was trained on pictures of 224×224" in "\n".join(watcher.notes)


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_a_name_that_is_not_there_and_weights_that_do_not_fit_are_refused(tmp_path: Path, kind: str) -> None:
    save_file(network(kind).state_dict(), tmp_path / "net.safetensors")
    fields = {"name": "net", "kind": kind, "weights": tmp_path / "net.safetensors"}
    with pytest.raises(BadTeacher, match="has no model resnet18x"):
        KINDS[kind].digests(TeacherOptions(**fields, model="resnet18x"))
    with pytest.raises(BadWeights, match="does not fit the model"):
        KINDS[kind].load(TeacherOptions(**fields, model="resnet18"))  # of 1,000 classes


def test_classes_of_torchvision_are_taken_over(tmp_path: Path) -> None:
    library("torchvision")
    options = TeacherOptions(name="net", kind="torchvision", model="resnet18", weights=tmp_path / "w.safetensors")
    names = KINDS["torchvision"].classes(options)
    assert names is not None
    assert (len(names), names[:2]) == (1000, ["tench", "goldfish"])


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_a_library_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, kind, None)  # what Python itself does to forbid an import
    options = TeacherOptions(name="net", kind=kind, model="resnet50", weights=Path(__file__))
    with pytest.raises(BadRequest, match="cannot be imported here") as refused:
        KINDS[kind].digests(options)
    assert "export the model to ONNX" in str(refused.value)


def test_a_name_and_weights_are_both_needed() -> None:
    with pytest.raises(ValueError, match="needs `model`"):
        TeacherOptions(name="net", kind="timm", model="resnet18")
